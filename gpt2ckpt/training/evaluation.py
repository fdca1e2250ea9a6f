"""Validation loss over fixed blocks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2ckpt.data.loader import Batch
from gpt2ckpt.model.generate import evaluating
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.training.hardware import Hardware


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats per token, each block weighted equally, and the tokens predicted."""

    loss: float
    tokens: int


def evaluate(
    model: GPT2, batches: Iterable[Batch], hardware: Hardware, stop: Callable[[], bool]
) -> Evaluation | None:
    """Evaluate `model` on `batches`; None if `stop` became true on the way.

    Draws no random number, so a training is the same with and without it.
    """
    losses: list[Tensor] = []
    blocks = tokens = 0
    with evaluating(model), torch.no_grad(), hardware.autocast():
        for inputs, targets in batches:
            if stop():
                return None
            loss = model.loss(inputs.to(hardware.device), targets.to(hardware.device))
            losses.append(loss.double() * len(inputs))
            blocks += len(inputs)
            tokens += targets.numel()
    return Evaluation(float(torch.stack(losses).sum() / blocks), tokens)
