"""Causal scaled-dot-product attention, with the faster of two implementations, and its cache.

With the key/value cache, only the newest position is computed for each generated token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Up to this length, attention weights take less memory than the other activations of a layer.
MAX_KEPT_LENGTH = 512


def causal_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """Return softmax(Q K^T / sqrt(D) + causal mask) V.

    PyTorch's fused kernel recomputes the attention weights in the backward pass, which saves memory
    and, on a GPU, time. In bfloat16 on a CPU, the kernel takes two to three times as long as matrix
    products. So in this case, training on short token blocks keeps the attention weights.

    Args:
        query: Shape [B, H, T, D].
        key: Shape [B, H, S, D] with S >= T; the queries are those of the last T tokens.
        value: Shape [B, H, S, D].
        dropout: Probability of dropping an attention weight.

    Returns:
        A tensor of the shape and dtype of `query`.
    """
    length, past = query.shape[2], key.shape[2] - query.shape[2]
    is_training = torch.is_grad_enabled() and not past
    if is_training and keeps_weights(query.device.type, query.dtype, length):
        return _by_products(query, key, value, dropout)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=_offset_mask(length, past, query.device) if past and length > 1 else None,
        dropout_p=dropout,
        is_causal=not past,
    )


def keeps_weights(device: str, dtype: torch.dtype, length: int) -> bool:
    """Return whether training on `length` tokens keeps the attention weights."""
    return device == "cpu" and dtype == torch.bfloat16 and length <= MAX_KEPT_LENGTH


def _by_products(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Compute attention by two matrix products; the first applies the scale and the mask."""
    batch, heads, length, width = query.shape
    query, key, value = (part.reshape(-1, length, width) for part in (query, key, value))
    mask = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1)
    scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=width**-0.5)
    weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0)
    return (weights @ value).view(batch, heads, length, width)


def _offset_mask(length: int, past: int, device: torch.device) -> Tensor:
    """Return the mask [T, past + T]: each new token attends to the past and up to itself."""
    allowed = torch.ones(length, past + length, dtype=torch.bool, device=device)
    return allowed.tril(diagonal=past)


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
