"""With 2, 1 and 2 ranks, each sample of an epoch is trained once, in the step of one rank."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gpt2ckpt.config.schema import AdamWConfig, ModelConfig, TrainerConfig
from gpt2ckpt.data.loader import Batch
from gpt2ckpt.data.order import block_of
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.optim.optimizers import build_optimizer
from gpt2ckpt.parallel.ddp import ParallelLoss
from gpt2ckpt.parallel.process_group import SingleProcess
from gpt2ckpt.training.hardware import Hardware
from gpt2ckpt.training.state import Counters, TrainingState
from gpt2ckpt.training.step import Stepper

BLOCKS, BATCH, ACCUMULATION, SEED = 24, 2, 2, 7
CPU = Hardware(torch.device("cpu"), "", "float32", "", 1)


class RankOf(SingleProcess):
    """One of several ranks that need no communication."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size  # type: ignore[misc]


@dataclass
class Recorder:
    """A loader that records the requested samples."""

    seen: list[int]

    def batch(self, position: int, count: int) -> Batch:
        blocks = block_of(np.arange(position, position + count), BLOCKS, SEED)
        self.seen += blocks.tolist()
        tokens = torch.zeros(count, 4, dtype=torch.int64)
        return tokens, tokens


def samples_of_step(position: int, ranks: int) -> list[int]:
    """Return the samples on which `ranks` ranks train in the step that begins at `position`."""
    recorder: Any = Recorder([])
    for rank in range(ranks):
        model = GPT2(ModelConfig(1, 1, 4, 4, 8))
        optimizer = build_optimizer(AdamWConfig(), model)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        trainer = TrainerConfig(batch_size=BATCH, grad_accum=ACCUMULATION)
        stepper = Stepper(ParallelLoss(model.loss), recorder, CPU, trainer, RankOf(rank, ranks))
        stepper.step(TrainingState(model, optimizer, scaler, Counters()), position)
    return recorder.seen


def test_changing_rank_count_trains_each_sample_once() -> None:
    steps = BLOCKS // (BATCH * ACCUMULATION)
    seen: list[int] = []
    for step, ranks in zip(range(steps), (2, 2, 1, 1, 2, 2), strict=True):
        position = step * BATCH * ACCUMULATION
        samples = samples_of_step(position, ranks)
        assert sorted(samples) == sorted(samples_of_step(position, 1))
        seen += samples
    assert Counter(seen) == Counter(range(BLOCKS))
