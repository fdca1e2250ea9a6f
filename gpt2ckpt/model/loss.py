"""Mean cross entropy of an output layer, without ever holding all logits.

GPT-2's logits (tokens x 50,257 words) are by far its biggest activation. Here the rows are taken in
chunks: logits of one chunk, softmax, and at once the gradients of the hidden states and the weight,
so that only one chunk of logits exists, and none is kept for the backward pass. The idea is that of
Liger Kernel's fused linear cross entropy (Hsu et al. 2024, arXiv:2410.10989).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows per chunk: more are hardly faster on a CPU, and the chunk's logits are the memory. A GPU
# needs more to be kept busy.
CHUNK_ROWS_CPU = 512
CHUNK_ROWS_GPU = 4096
# Rows whose softmax is taken at a time in float32 on a CPU, and words whose weight gradient is
# multiplied at a time in 16 bits. Small blocks save memory and stay nearer to the cache; but each
# is a meeting of all threads, which is slow when another program has taken a core.
SOFTMAX_ROWS_CPU = 64
PRODUCT_WORDS = 8192
# Matrix products in 16 bits are faster when the vocabulary is a multiple of this: rows are aligned.
VOCABULARY_MULTIPLE = 64


@torch.compiler.disable  # type: ignore[untyped-decorator]
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int | None = None
) -> Tensor:
    """Mean of `cross_entropy(hidden @ weight.T, targets)`: a float32 scalar, in nats.

    hidden: [N, C], weight: [V, C] (floating point), targets: [N] int64 in [0, V). Under autocast
    the matrix products run in its dtype, otherwise in the weight's. Softmax, loss and the sums over
    chunks are float32, and the result is the same bit by bit from run to run. The gradients are
    computed in the forward pass, for the inputs that need one, and scaled in the backward pass: a
    float16 loss scale meets them in float32. One backward pass only, no second derivative.
    torch.compile breaks its graph here and runs this as it is.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    default = CHUNK_ROWS_CPU if device == "cpu" else CHUNK_ROWS_GPU
    sizes = _Sizes(dtype, min(chunk_rows or default, max(len(targets), 1)))
    # Decided here: inside an autograd.Function gradients are always off.
    if not (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)):
        return _run(hidden, weight, targets, sizes, (False, False)).loss
    apply: Any = _LinearCrossEntropy.apply
    loss: Tensor = apply(hidden, weight, targets, sizes)
    return loss


@dataclass(frozen=True)
class _Sizes:
    """The dtype of the matrix products, and the rows of a chunk."""

    dtype: torch.dtype
    rows: int


@dataclass(frozen=True)
class _Result:
    """The mean loss, and the gradients of the *sum* of the losses, where they were wanted."""

    loss: Tensor
    hidden_grad: Tensor | None
    weight_grad: Tensor | None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, sizes: _Sizes) -> Tensor:
        result = _run(hidden, weight, targets, sizes, ctx.needs_input_grad[:2])
        ctx.gradients = (result.hidden_grad, result.weight_grad)
        ctx.tokens = len(targets)
        ctx.dtypes = (hidden.dtype, weight.dtype)
        return result.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy allows one backward pass per forward pass")
        gradients, ctx.gradients = ctx.gradients, None
        # 1/N comes in only here: in float16 most of the softmax divided by N would be zero.
        scale = grad_output / ctx.tokens
        scaled = [
            None if gradient is None else gradient.mul_(scale).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None)


def _run(
    hidden: Tensor, weight: Tensor, targets: Tensor, sizes: _Sizes, wanted: tuple[bool, bool]
) -> _Result:
    """Walk over the chunks. Every large buffer is made once: fresh pages cost more than work."""
    factor = _cast_padded(weight, sizes.dtype)
    buffer = factor.new_empty(sizes.rows, len(factor))
    scratch = _softmax_scratch(buffer, len(weight))
    losses = torch.empty_like(targets, dtype=torch.float32)
    hidden_grad = torch.empty_like(hidden, dtype=torch.float32) if wanted[0] else None
    weight_grad = _WeightGradient(weight, sizes.dtype) if wanted[1] else None
    for start in range(0, len(targets), sizes.rows):
        part = slice(start, start + sizes.rows)
        chunk = hidden[part].to(sizes.dtype)
        logits = torch.mm(chunk, factor.t(), out=buffer[: len(chunk)])
        losses[part] = _softmax_gradient_(logits[:, : len(weight)], targets[part], scratch)
        if hidden_grad is not None:
            hidden_grad[part] = torch.mm(logits, factor)
        if weight_grad is not None:
            weight_grad.add(logits, chunk)
    return _Result(losses.mean(), hidden_grad, weight_grad.total if weight_grad else None)


def _cast_padded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in `dtype`. A copy gets zero rows up to a multiple; their logits stay zero."""
    if weight.dtype == dtype:
        return weight
    vocabulary, width = weight.shape
    padded = -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    copy = weight.new_empty(padded, width, dtype=dtype)
    copy[:vocabulary] = weight
    copy[vocabulary:] = 0
    return copy


def _softmax_scratch(logits: Tensor, vocabulary: int) -> Tensor | None:
    """Float32 rows for the softmax of logits of fewer bits; float32 logits need none."""
    if logits.dtype == torch.float32:
        return None
    rows = min(len(logits), SOFTMAX_ROWS_CPU) if logits.device.type == "cpu" else len(logits)
    return logits.new_empty(rows, vocabulary, dtype=torch.float32)


def _softmax_gradient_(logits: Tensor, targets: Tensor, scratch: Tensor | None) -> Tensor:
    """Overwrite logits [R, V] by softmax - onehot; return the losses [R] in float32."""
    if scratch is None:
        return _softmax_gradient_float_(logits, targets)
    losses = []
    for start in range(0, len(logits), len(scratch)):
        part = slice(start, start + len(scratch))
        block = scratch[: len(logits[part])].copy_(logits[part])
        losses.append(_softmax_gradient_float_(block, targets[part]))
        logits[part] = block
    return torch.cat(losses)


def _softmax_gradient_float_(logits: Tensor, targets: Tensor) -> Tensor:
    """The same for float32 logits, in place.

    The log of the sum of exponentials follows from the largest logit and its probability, which is
    never below 1/V: cheaper than a pass of its own.
    """
    row = torch.arange(len(targets), device=targets.device)
    largest, target = logits.amax(1), logits[row, targets]
    torch.softmax(logits, 1, out=logits)
    losses = largest - logits.amax(1).log() - target
    logits[row, targets] -= 1.0
    return losses


class _WeightGradient:
    """The sum over chunks of grad.T @ hidden in float32, [V, C].

    Products in 16 bits go through a small buffer, a range of words at a time: it costs little
    memory, and is still near when it is added to the sum.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.total = torch.empty_like(weight, dtype=torch.float32)
        self.product = None
        if dtype != torch.float32:
            self.product = weight.new_empty(PRODUCT_WORDS, weight.shape[1], dtype=dtype)
        self.started = False

    def add(self, grad: Tensor, chunk: Tensor) -> None:
        """grad: [R, V or more], chunk: [R, C], both in the dtype of the matrix products."""
        if self.product is None:
            self.total.addmm_(grad.t(), chunk, beta=float(self.started))
        else:
            for start in range(0, len(self.total), PRODUCT_WORDS):
                total = self.total[start : start + PRODUCT_WORDS]
                columns = grad[:, start : start + PRODUCT_WORDS].t()
                product = torch.mm(columns, chunk, out=self.product[: len(columns)])[: len(total)]
                _ = total.add_(product) if self.started else total.copy_(product)
        self.started = True
