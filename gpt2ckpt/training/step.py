"""One optimizer step: micro-batches, clipping, the update; or nothing at all."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from gpt2ckpt.data.loader import BlockLoader
from gpt2ckpt.errors import UserError
from gpt2ckpt.parallel.ddp import LossFunction, no_gradient_sync
from gpt2ckpt.parallel.process_group import ProcessGroup, SingleProcess
from gpt2ckpt.parallel.step_sharding import StepShard, shard_step
from gpt2ckpt.signals.deadline import StepAbandoned
from gpt2ckpt.training.anomalies import check_loss, check_spike
from gpt2ckpt.training.hardware import Hardware
from gpt2ckpt.training.rng import capture_generators, restore_generators
from gpt2ckpt.training.state import TrainingState


class HalfApplied(UserError):
    """The update failed while it was being made: weights and optimizer no longer fit together."""


@dataclass(frozen=True)
class StepResult:
    """Mean loss in nats per token over the step's blocks, and the gradient norm before clipping."""

    loss: float
    grad_norm: float


@dataclass(frozen=True)
class Stepper:
    """Makes optimizer steps of `grad_accum` micro-batches of `batch_size` blocks.

    The micro-batches are sharded over the ranks of `group`. `gradient_sync(last)` is entered around
    each forward pass (see `gpt2ckpt.parallel.ddp`); `reseed` is called before each step with the
    number of steps done. Before each micro-batch, `should_abandon` gets the fraction of the step
    that is left, and the step raises StepAbandoned if it returns true; then `begins` gets the
    micro-batch's number, from 1, and their count.
    """

    loss: LossFunction
    loader: BlockLoader
    hardware: Hardware
    batch_size: int
    grad_accum: int
    grad_clip: float
    group: ProcessGroup = field(default_factory=SingleProcess)
    gradient_sync: Callable[[bool], AbstractContextManager[None]] = no_gradient_sync
    reseed: Callable[[int], None] | None = None
    spike_zscore: float | None = None
    spike_window: int = 0
    should_abandon: Callable[[float], bool] = lambda fraction_left: False
    on_micro_batch: Callable[[int, int], None] = lambda number, count: None

    @property
    def blocks(self) -> int:
        """Blocks in one step, the global batch."""
        return self.batch_size * self.grad_accum

    @cached_property
    def shard(self) -> StepShard:
        """What this rank trains of each step."""
        return shard_step(self.group.rank, self.group.size, self.batch_size, self.grad_accum)

    def step(self, state: TrainingState, position: int) -> StepResult:
        """Train on the blocks from `position` on.

        On an exception the state is the one before the step, random generators included, unless it
        is HalfApplied. Raises NonFiniteLoss or LossSpike instead of applying such a step.
        """
        generators = capture_generators()
        try:
            if self.reseed is not None:
                self.reseed(state.counters.step)
            loss = self.group.all_reduce_mean(self._accumulate(state, position))
            norm = self._gradient_norm(state)
            self._check(state, loss, norm)
        except BaseException:
            state.optimizer.zero_grad()
            restore_generators(generators)
            raise
        try:
            if math.isfinite(norm):
                for optimizer in state.optimizer.torch_optimizers:
                    state.scaler.step(optimizer)
            state.scaler.update()
        except BaseException as error:
            raise HalfApplied(
                "the update of the weights was cut off, so that this step is not saved and the "
                f"last checkpoint stands: {type(error).__name__}: {error}"
            ) from error
        finally:
            state.optimizer.zero_grad()
        return StepResult(loss, norm)

    def warm_up_ddp(self, state: TrainingState) -> None:
        """Sum gradients up over the ranks once, and drop them; nothing of the state changes.

        DistributedDataParallel arranges its buckets anew after the first time, and in which order
        numbers are added follows from the buckets: without this, three ranks and more that were
        stopped and resumed would not have the bits of ranks that were not.
        """
        generators = capture_generators()
        inputs, targets = self.loader.batch(0, self.shard[0].count)
        with self.hardware.autocast():
            loss = self.loss(self._move(inputs), self._move(targets))
        torch.autograd.backward(loss)
        state.optimizer.zero_grad()
        restore_generators(generators)

    def _accumulate(self, state: TrainingState, position: int) -> float:
        losses = []
        for number, part in enumerate(self.shard):
            if self.should_abandon(1 - number / len(self.shard)):
                raise StepAbandoned
            self.on_micro_batch(number + 1, len(self.shard))
            inputs, targets = self.loader.batch(position + part.offset, part.count)
            is_last = part is self.shard[-1]
            with self.gradient_sync(is_last), self.hardware.autocast():
                loss = self.loss(self._move(inputs), self._move(targets)) / len(self.shard)
            torch.autograd.backward(state.scaler.scale(loss))
            losses.append(loss.detach())
        return float(torch.stack(losses).sum())

    def _gradient_norm(self, state: TrainingState) -> float:
        for optimizer in state.optimizer.torch_optimizers:
            state.scaler.unscale_(optimizer)
        limit = self.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(state.optimizer.parameters(), limit)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # if sharded

    def _check(self, state: TrainingState, loss: float, norm: float) -> None:
        check_loss(loss, norm, norm_may_overflow=state.scaler.is_enabled())
        if self.spike_zscore is not None:
            recent = state.counters.anomalies.recent
            check_spike(loss, recent, self.spike_window, self.spike_zscore)

    def _move(self, tensor: Tensor) -> Tensor:
        if self.hardware.device.type == "cuda":
            return tensor.pin_memory().to(self.hardware.device, non_blocking=True)
        return tensor.to(self.hardware.device)
