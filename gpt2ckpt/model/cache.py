"""Keys and values of the tokens already seen, so that generating a token costs one position."""

from torch import Tensor


class LayerCache:
    """One layer's keys and values, [B, H, block_size, D] each, filled up to `length`.

    The memory is made at the first use, in the dtype that attention has then (autocast's, say).
    """

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add those of new tokens, [B, H, T, D]; return all so far as views, [B, H, length, D]."""
        if self.keys is None or self.values is None:
            batch, heads, _, width = keys.shape
            self.keys = keys.new_empty(batch, heads, self.block_size, width)
            self.values = values.new_empty(batch, heads, self.block_size, width)
        start, self.length = self.length, self.length + keys.shape[2]
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class KeyValueCache:
    """The caches of all layers; `length` is the number of tokens they hold."""

    def __init__(self, n_layer: int, block_size: int) -> None:
        self.layers = [LayerCache(block_size) for _ in range(n_layer)]
        self.length = 0

    def clear(self) -> None:
        """Forget all tokens, keep the memory."""
        self.length = 0
        for layer in self.layers:
            layer.length = 0
