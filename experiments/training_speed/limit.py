"""The matrix products of a training step and nothing else: no step can be faster."""

import time
from collections.abc import Iterator

import torch

from experiments.training_speed.shapes import Shape

Product = tuple[int, int, int, int]  # times, rows, inner, columns


def products(shape: Shape) -> Iterator[Product]:
    """Every product of the forward pass; the backward pass makes two of each, as large."""
    model, tokens = shape.model, shape.tokens
    width, layers = model.n_embd, model.n_layer
    for inner, columns in (
        (width, 3 * width),
        (width, width),
        (width, 4 * width),
        (4 * width, width),
    ):
        yield layers, tokens, inner, columns
    yield 1, tokens, width, model.vocab_size
    heads, length = layers * shape.batch_size * model.n_head, model.block_size
    yield heads, length, width // model.n_head, length  # attention: scores
    yield heads, length, length, width // model.n_head  # attention: mixing


def limit_seconds(shape: Shape, dtype: torch.dtype) -> float:
    """Seconds that the products of one step take, with memory that was touched before."""
    total = 0.0
    for times, rows, inner, columns in products(shape):
        a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
        out, grad = torch.empty(rows, columns, dtype=dtype), torch.randn(rows, columns).to(dtype)
        grad_a, grad_b = torch.empty_like(a), torch.empty_like(b)
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            torch.mm(grad, b.t(), out=grad_a)
            torch.mm(a.t(), grad, out=grad_b)
            best = min(best, time.perf_counter() - start)
        total += times * best
    return total
