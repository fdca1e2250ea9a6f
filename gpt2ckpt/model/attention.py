"""Scaled-dot-product attention, causal: which way it is computed, and why."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Up to this length the attention weights take less memory than the rest of a layer's activations.
MAX_KEPT_LENGTH = 512


def causal_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """Mix the values of each token and those before it: [B, H, T, D] for three times [B, H, T, D].

    The keys may be of more tokens than the queries, which then are the last of them. PyTorch's
    fused kernel computes the attention weights again in the backward pass instead of keeping them:
    that saves memory, and on a GPU time. But in bfloat16 on a CPU it takes two to three times as
    long as plain matrix products, so there the weights of short blocks are kept for training.
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
    """Whether a training keeps the attention weights, on a type of device, for so many tokens."""
    return device == "cpu" and dtype == torch.bfloat16 and length <= MAX_KEPT_LENGTH


def _by_products(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """softmax(Q K^T / sqrt(D) + mask) V, the scale and the mask within the first product."""
    batch, heads, length, width = query.shape
    query, key, value = (part.reshape(-1, length, width) for part in (query, key, value))
    mask = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1)
    scores = torch.baddbmm(mask, query, key.transpose(1, 2), alpha=width**-0.5)
    weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0)
    return (weights @ value).view(batch, heads, length, width)


def _offset_mask(length: int, past: int, device: torch.device) -> Tensor:
    """True where a new token [T] may look: all of the past, and the new ones up to itself."""
    allowed = torch.ones(length, past + length, dtype=torch.bool, device=device)
    return allowed.tril(diagonal=past)
