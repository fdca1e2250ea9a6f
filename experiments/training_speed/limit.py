"""Measures only the matrix products of a training step, a lower bound of its time.

Each product is timed alone in the layout of a training run, with operands in resident memory. The
fastest of several runs counts.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.training_speed import own
from experiments.training_speed.shapes import Shape
from gpt2ckpt.training.hardware import DTYPES, prepare_process

VOCABULARY = 50257
PADDED_VOCABULARY = 50304  # a multiple of 64: faster in 16 bits
TRIALS = 7


@dataclass(frozen=True)
class Product:
    """Products Y = X W^T with X [rows, inner], W [columns, inner]: `count` per step, in `batch`es.

    Its backward pass has two products of the same size: dX = dY W and dW = dY^T X.
    """

    name: str
    count: int
    rows: int
    inner: int
    columns: int
    batch: int = 1

    @property
    def flops(self) -> int:
        """Floating-point operations, forward and backward."""
        return 3 * 2 * self.count * self.batch * self.rows * self.inner * self.columns


def products(shape: Shape, vocabulary: int) -> Iterator[Product]:
    """Return every product of the forward pass; attention without the causal mask."""
    tokens, width, layers = shape.tokens, shape.n_embd, shape.n_layer
    heads, head_width = shape.batch * shape.n_head, shape.n_embd // shape.n_head
    yield Product("queries, keys, values", layers, tokens, width, 3 * width)
    yield Product("attention scores", layers, shape.context, head_width, shape.context, heads)
    yield Product("attention mixing", layers, shape.context, shape.context, head_width, heads)
    yield Product("attention output", layers, tokens, width, width)
    yield Product("MLP up", layers, tokens, width, 4 * width)
    yield Product("MLP down", layers, tokens, 4 * width, width)
    yield Product("output layer", 1, tokens, width, vocabulary)


def measure(shape: Shape) -> dict[str, object]:
    """Return the seconds of each product and of all, in the precision that gpt2ckpt uses."""
    config = own.read_config(shape)
    hardware = own.choose(config)
    prepare_process(hardware, deterministic=config.trainer.deterministic)
    dtype = DTYPES[hardware.precision]
    vocabulary = VOCABULARY if dtype == torch.float32 else PADDED_VOCABULARY
    rows = [(product, _seconds(product, dtype)) for product in products(shape, vocabulary)]
    return {
        "seconds": [sum(seconds for _, seconds in rows)],
        "precision": hardware.precision,
        "products": {
            product.name: {
                "forward": dataclasses.asdict(product),
                "seconds": seconds,
                "gflop_per_s": product.flops / seconds / 1e9,
            }
            for product, seconds in rows
        },
    }


def _seconds(product: Product, dtype: torch.dtype) -> float:
    def new(*size: int) -> Tensor:
        whole = size if product.batch == 1 else (product.batch, *size)
        return torch.randn(whole).to(dtype)

    x, w = new(product.rows, product.inner), new(product.columns, product.inner)
    y, dx, dw = new(product.rows, product.columns), torch.empty_like(x), torch.empty_like(w)
    multiply = torch.mm if product.batch == 1 else torch.bmm
    parts: list[Callable[[], Tensor]] = [
        lambda: multiply(x, w.mT, out=y),
        lambda: multiply(y, w, out=dx),
        lambda: multiply(y.mT, x, out=dw),
    ]
    return product.count * sum(_fastest(part) for part in parts)


def _fastest(work: Callable[[], Tensor]) -> float:
    times = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
