"""The key/value cache, with which only the newest position is computed for each generated token."""

from torch import Tensor


class LayerCache:
    """The keys and values of one layer, [B, H, block_size, D] each, filled up to `length`.

    The memory is allocated at the first use, in the dtype of the first keys, e.g. that of autocast.
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values, [B, H, T, D]; return views of all of them, [B, H, length, D]."""
        if self.keys is None or self.values is None:
            batch, heads, _, width = keys.shape
            self.keys = keys.new_empty(batch, heads, self.block_size, width)
            self.values = values.new_empty(batch, heads, self.block_size, width)
        start, self.length = self.length, self.length + keys.shape[2]
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class KeyValueCache:
    """The caches of all layers; `length` is the number of cached tokens."""

    def __init__(self, n_layer: int, block_size: int) -> None:
        self.layers = [LayerCache(block_size) for _ in range(n_layer)]
        self.length = 0

    def clear(self) -> None:
        """Remove all tokens without freeing the memory."""
        self.length = 0
        for layer in self.layers:
            layer.length = 0
