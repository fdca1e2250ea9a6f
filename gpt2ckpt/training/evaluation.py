"""Validation loss over a fixed list of token blocks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gpt2ckpt.data.loader import Batch
from gpt2ckpt.model.build import LossFunction, loss_of
from gpt2ckpt.model.generate import evaluating
from gpt2ckpt.parallel.process_group import ProcessGroup, SingleProcess
from gpt2ckpt.parallel.step_sharding import round_robin
from gpt2ckpt.training.hardware import Hardware


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        loss: Mean loss in nats per token; each token block has the same weight.
        tokens: Number of predicted tokens.
        blocks: Digest of the evaluated token blocks; empty if losses are not compared.
    """

    loss: float
    tokens: int
    blocks: str = ""


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    hardware: Hardware,
    stop: Callable[[], bool],
    group: ProcessGroup | None = None,
    *,
    loss: LossFunction | None = None,
) -> Evaluation | None:
    """Evaluate a model; return None if `stop` returned true before the end.

    The ranks share the batches, and each rank returns bitwise the result that a single process
    would. No random numbers are drawn, so the steps after an evaluation do not depend on it.

    Args:
        model: The model; its training mode is restored afterwards.
        batches: Inputs and targets, int64 tensors of shape [B, T]; the same on all ranks.
        hardware: The device and precision.
        stop: Called before each batch, on all ranks together.
        group: The ranks; None for a single process.
        loss: The loss function of the model; None for `loss_of(model)`.
    """
    group, loss = group or SingleProcess(), loss or loss_of(model)
    sums: list[Tensor] = []
    sizes: list[tuple[int, int]] = []  # blocks and tokens
    with evaluating(model), torch.no_grad(), hardware.autocast():
        for (inputs, targets), counts in round_robin(batches, group.rank, group.size):
            if stop():
                return None
            mean = loss(inputs.to(hardware.device), targets.to(hardware.device))
            sums.append(mean.double() * len(inputs))
            sizes.append((len(inputs), targets.numel()) if counts else (0, 0))
    # Sum in the order of the batches, so that the result does not depend on the number of ranks.
    losses = group.all_gather(torch.stack(sums).cpu()).T.flatten()
    counted = group.all_gather(torch.tensor(sizes)).transpose(0, 1).flatten(0, 1)
    blocks, tokens = counted.sum(0).tolist()
    return Evaluation(float(losses[counted[:, 0] > 0].sum() / blocks), tokens)
