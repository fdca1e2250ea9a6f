"""How a model is trained on one rank of several, behind one small interface.

The model itself stays what it was: its parameter names, and so the checkpoints, know nothing of a
wrapper. Only the function that gives the loss of a micro-batch, and when gradients are summed up
over the ranks, differ.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpt2ckpt.model.gpt2 import GPT2

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def _no_sync(last: bool) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


@dataclass(frozen=True)
class ParallelLoss:
    """The loss function of a parallel model, and the context for gradient synchronization.

    `gradient_sync(last)` is entered around each forward pass: gradients are all-reduced only in the
    `last` micro-batch of a step.
    """

    loss: LossFunction
    gradient_sync: Callable[[bool], AbstractContextManager[None]] = _no_sync


def ddp_loss(model: GPT2, loss: LossFunction, device: torch.device) -> ParallelLoss:
    """Every rank holds the whole model; DistributedDataParallel averages the gradients.

    `loss` is the model's, compiled or not. The parameters of the first rank are taken by all.
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
    """The loss as a module's forward pass, which is all that the wrapper knows to call."""

    def __init__(self, model: GPT2, loss: LossFunction) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self._loss(tokens, targets)
