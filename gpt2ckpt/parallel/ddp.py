"""The loss function of a parallel model, and its implementation with DistributedDataParallel.

The trainer uses a parallel model only through `ParallelLoss`. Checkpoints do not depend on the
wrapper, because the wrapped model keeps its parameter names.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt2ckpt.model.build import LossFunction


def _no_sync(last: bool) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


@dataclass(frozen=True)
class ParallelLoss:
    """The loss function of a parallel model, and its gradient synchronization.

    Attributes:
        loss: Takes tokens and targets, int64 tensors of shape [B, T]; returns a float32 scalar.
        gradient_sync: Takes whether a micro-batch is the last of its step; returns the context of
            its forward pass. Gradients are synchronized only in the context of the last
            micro-batch. The default, for a single rank, never synchronizes gradients.
    """

    loss: LossFunction
    gradient_sync: Callable[[bool], AbstractContextManager[None]] = _no_sync


def ddp_loss(model: nn.Module, loss: LossFunction, device: torch.device) -> ParallelLoss:
    """Return the loss function of a model that every rank holds completely.

    DistributedDataParallel averages the gradients over the ranks, and copies the parameters of the
    first rank to all ranks.

    Args:
        model: The model, already on `device`.
        loss: The loss of the model, compiled or not.
        device: The device of this rank.
    """
    devices = [device] if device.type == "cuda" else None
    wrapper = DistributedDataParallel(
        _Loss(model, loss), device_ids=devices, gradient_as_bucket_view=True
    )

    def gradient_sync(last: bool) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = (
            contextlib.nullcontext() if last else wrapper.no_sync()
        )
        return context

    return ParallelLoss(wrapper, gradient_sync)


class _Loss(nn.Module):
    """The loss as the forward pass of a module, which DistributedDataParallel requires."""

    def __init__(self, model: nn.Module, loss: LossFunction) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self._loss(tokens, targets)
