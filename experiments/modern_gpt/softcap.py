"""Cross entropy of softly capped logits, in chunks without all logits in memory."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ROWS = 512


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """Return logits within (-cap, cap), almost unchanged near zero."""
    return cap * torch.tanh(logits / cap)


def capped_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    """Return the mean cross entropy of `soft_cap(hidden @ weight.T)` in nats, a float32 scalar.

    Args:
        hidden: Hidden states, [N, C].
        weight: The weight of the output layer, [V, C].
        targets: Token ids, int64 of shape [N].
        cap: The largest absolute value of a logit.
    """
    apply: Any = _CappedCrossEntropy.apply
    loss: Tensor = apply(hidden, weight, targets, cap)
    return loss


class _CappedCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, while the logits of a chunk are in memory."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
        device = hidden.device.type
        is_mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_mixed else weight.dtype
        factor = weight.to(dtype)
        needs_gradients = any(ctx.needs_input_grad)
        hidden_grad = torch.empty_like(hidden, dtype=torch.float32) if needs_gradients else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_gradients else None
        losses = []
        for start in range(0, len(targets), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            chunk, target = hidden[part].to(dtype), targets[part]
            tanh = (chunk @ factor.t()).float().div_(cap).tanh_()
            log_softmax = (tanh * cap).log_softmax(1)
            losses.append(F.nll_loss(log_softmax, target, reduction="none"))
            if hidden_grad is not None and weight_grad is not None:
                gradient = log_softmax.exp_()
                gradient[torch.arange(len(target), device=target.device), target] -= 1
                gradient = gradient.addcmul_(gradient, tanh.square_(), value=-1).to(dtype)
                hidden_grad[part] = gradient @ factor
                weight_grad.add_(gradient.t() @ chunk)
        ctx.gradients = (hidden_grad, weight_grad)
        ctx.tokens, ctx.dtypes = len(targets), (hidden.dtype, weight.dtype)
        return torch.cat(losses).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_output / ctx.tokens
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [g.mul_(scale).to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return (*scaled, None, None)
