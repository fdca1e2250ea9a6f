"""Validation loss over fixed blocks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2ckpt.data.loader import Batch
from gpt2ckpt.model.generate import evaluating
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.parallel.process_group import ProcessGroup, SingleProcess
from gpt2ckpt.parallel.step_sharding import round_robin
from gpt2ckpt.training.hardware import Hardware


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats per token, each block weighted equally, and the tokens predicted.

    `blocks` is a digest of what was evaluated, where losses are to be compared.
    """

    loss: float
    tokens: int
    blocks: str = ""


def evaluate(
    model: GPT2,
    batches: Iterable[Batch],
    hardware: Hardware,
    stop: Callable[[], bool],
    group: ProcessGroup | None = None,
) -> Evaluation | None:
    """Evaluate `model` on `batches`; None if `stop` became true on the way.

    The batches are distributed over the ranks of `group`; every rank returns the same result, which
    is that of a single process.
    Draws no random number, so a training is the same with and without it.
    """
    group = group or SingleProcess()
    sums: list[Tensor] = []
    sizes: list[tuple[int, int]] = []  # blocks and tokens
    with evaluating(model), torch.no_grad(), hardware.autocast():
        for (inputs, targets), counts in round_robin(batches, group.rank, group.size):
            if stop():
                return None
            loss = model.loss(inputs.to(hardware.device), targets.to(hardware.device))
            sums.append(loss.double() * len(inputs))
            sizes.append((len(inputs), targets.numel()) if counts else (0, 0))
    # In the order of the batches, so that the sum has the same bits whoever computed what.
    losses = group.all_gather(torch.stack(sums).cpu()).T.flatten()
    counted = group.all_gather(torch.tensor(sizes)).transpose(0, 1).flatten(0, 1)
    blocks, tokens = counted.sum(0).tolist()
    return Evaluation(float(losses[counted[:, 0] > 0].sum() / blocks), tokens)
