"""Mean cross entropy of an output layer, computed in chunks without all logits in memory.

GPT-2's logits (N tokens x 50,257) are by far its largest activation. Here the tokens are processed
in chunks: the logits of a chunk, their softmax, and immediately the gradients of the hidden states
and the weight are computed. So only one chunk of logits is in memory at a time, and none is kept
for the backward pass. The method is that of Liger Kernel's fused linear cross entropy (Hsu et al.
2024, arXiv:2410.10989).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows per chunk. The logits of a chunk determine the memory. On a CPU, more rows are hardly faster;
# a GPU needs more rows for full utilization.
CHUNK_ROWS_CPU = 512
CHUNK_ROWS_GPU = 4096
# Rows of a float32 softmax on a CPU, and vocabulary entries in a 16-bit product for the weight
# gradient. Small sizes save memory and fit the cache, but each part ends with a barrier of all
# threads, which is slow while another program uses a core.
SOFTMAX_ROWS_CPU = 64
PRODUCT_TOKENS = 8192
# Matrix products in 16 bits are faster with aligned rows: the vocabulary is padded to a multiple.
VOCABULARY_MULTIPLE = 64


@torch.compiler.disable  # type: ignore[untyped-decorator]
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_rows: int | None = None
) -> Tensor:
    """Return the mean of `cross_entropy(hidden @ weight.T, targets)` in nats, a float32 scalar.

    Matrix products run in the dtype of autocast if enabled, else in the dtype of the weight.
    Softmax, loss and sums over chunks are float32, and the result is bitwise reproducible. The
    forward pass computes the gradients, for the inputs that require them. The backward pass only
    scales these gradients, so a float16 loss scale is applied in float32. Only one backward pass is
    possible, and no second derivative. torch.compile does not compile this function.

    Args:
        hidden: Hidden states, floating point of shape [N, C].
        weight: The weight of the output layer, floating point of shape [V, C].
        targets: Token ids in [0, V), int64 of shape [N].
        chunk_rows: Rows of a chunk; None for the default of the device.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    default = CHUNK_ROWS_CPU if device == "cpu" else CHUNK_ROWS_GPU
    sizes = _Sizes(dtype, min(chunk_rows or default, max(len(targets), 1)))
    # Checked here, because gradients are always off inside an autograd.Function.
    if not (torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)):
        return _run(hidden, weight, targets, sizes, (False, False)).loss
    apply: Any = _LinearCrossEntropy.apply
    loss: Tensor = apply(hidden, weight, targets, sizes)
    return loss


@dataclass(frozen=True)
class _Sizes:
    """The dtype of the matrix products, and the number of rows in a chunk."""

    dtype: torch.dtype
    rows: int


@dataclass(frozen=True)
class _Result:
    """The mean loss, and the gradients of the *sum* of the losses; None if not required."""

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
        # Divided by N only here: in float16, most softmax values divided by N would become zero.
        scale = grad_output / ctx.tokens
        scaled = [
            None if gradient is None else gradient.mul_(scale).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None)


def _run(
    hidden: Tensor, weight: Tensor, targets: Tensor, sizes: _Sizes, required: tuple[bool, bool]
) -> _Result:
    """Process all chunks. Large buffers are allocated once, because mapping pages is slow."""
    factor = _cast_padded(weight, sizes.dtype)
    buffer = factor.new_empty(sizes.rows, len(factor))
    scratch = _softmax_scratch(buffer, len(weight))
    losses = torch.empty_like(targets, dtype=torch.float32)
    hidden_grad = torch.empty_like(hidden, dtype=torch.float32) if required[0] else None
    weight_grad = _WeightGradient(weight, sizes.dtype) if required[1] else None
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
    """Return the weight in `dtype`; a copy is padded with zero rows, which give zero logits."""
    if weight.dtype == dtype:
        return weight
    vocabulary, width = weight.shape
    padded = -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    copy = weight.new_empty(padded, width, dtype=dtype)
    copy[:vocabulary] = weight
    copy[vocabulary:] = 0
    return copy


def _softmax_scratch(logits: Tensor, vocabulary: int) -> Tensor | None:
    """Return float32 rows for the softmax of 16-bit logits; None for float32 logits."""
    if logits.dtype == torch.float32:
        return None
    rows = min(len(logits), SOFTMAX_ROWS_CPU) if logits.device.type == "cpu" else len(logits)
    return logits.new_empty(rows, vocabulary, dtype=torch.float32)


def _softmax_gradient_(logits: Tensor, targets: Tensor, scratch: Tensor | None) -> Tensor:
    """Overwrite logits [R, V] with softmax - onehot; return the losses [R] in float32."""
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
    """Overwrite float32 logits [R, V] with softmax - onehot; return the losses [R].

    With the largest logit m and its probability p, log(sum(exp(logits))) = m - log(p). This formula
    saves a pass over the logits, and its logarithm is safe, since p is at least 1/V.
    """
    row = torch.arange(len(targets), device=targets.device)
    largest, target = logits.amax(1), logits[row, targets]
    torch.softmax(logits, 1, out=logits)
    losses = largest - logits.amax(1).log() - target
    logits[row, targets] -= 1.0
    return losses


class _WeightGradient:
    """The sum over chunks of grad.T @ hidden, float32 of shape [V, C].

    A product in 16 bits is computed for a part of the vocabulary at a time, in a small buffer that
    is still in the cache when it is added to the sum.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.total = torch.empty_like(weight, dtype=torch.float32)
        self.product = None
        if dtype != torch.float32:
            self.product = weight.new_empty(PRODUCT_TOKENS, weight.shape[1], dtype=dtype)
        self.started = False

    def add(self, grad: Tensor, chunk: Tensor) -> None:
        """Add a chunk: `grad` [R, V or more] and `chunk` [R, C], in the dtype of the products."""
        if self.product is None:
            self.total.addmm_(grad.t(), chunk, beta=float(self.started))
        else:
            for start in range(0, len(self.total), PRODUCT_TOKENS):
                total = self.total[start : start + PRODUCT_TOKENS]
                columns = grad[:, start : start + PRODUCT_TOKENS].t()
                product = torch.mm(columns, chunk, out=self.product[: len(columns)])[: len(total)]
                _ = total.add_(product) if self.started else total.copy_(product)
        self.started = True
