"""One optimizer step: forward and backward passes, gradient clipping, the update."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from gpt2ckpt.config.options import PluginError
from gpt2ckpt.config.schema import TrainerConfig
from gpt2ckpt.data.loader import BlockLoader
from gpt2ckpt.errors import UserError
from gpt2ckpt.parallel.ddp import ParallelLoss
from gpt2ckpt.parallel.process_group import ProcessGroup, SingleProcess
from gpt2ckpt.parallel.step_sharding import StepShard, shard_step
from gpt2ckpt.signals.deadline import StepAbandoned
from gpt2ckpt.signals.host import StoppedUnsaved
from gpt2ckpt.training.anomalies import check_loss, check_spike
from gpt2ckpt.training.hardware import Hardware
from gpt2ckpt.training.rng import capture_generators, restore_generators
from gpt2ckpt.training.state import TrainingState


class HalfApplied(UserError):
    """The update failed halfway: the weights and the optimizer state no longer fit together."""


@dataclass(frozen=True)
class StepResult:
    """Mean loss in nats per token over the step's blocks, and the gradient norm before clipping."""

    loss: float
    grad_norm: float


@dataclass(frozen=True)
class StepHooks:
    """Functions that a step calls. The defaults do nothing.

    Attributes:
        reseed: Called first, with the number of steps done, to seed this rank's generators.
        should_abandon: Called before each micro-batch with the fraction of the step that is left;
            if it returns true, the step raises StepAbandoned.
        on_micro_batch: Called before each micro-batch with its number, from 1, and their count.
    """

    reseed: Callable[[int], None] = lambda step: None
    should_abandon: Callable[[float], bool] = lambda fraction_left: False
    on_micro_batch: Callable[[int, int], None] = lambda number, count: None


@dataclass(frozen=True)
class Stepper:
    """Makes optimizer steps on a TrainingState, each of which is applied completely or not at all.

    A step accumulates the gradients of `grad_accum` micro-batches of `batch_size` blocks, clips
    their norm and updates the weights. With several ranks, `shard_step` distributes the blocks, and
    the result is the same on all ranks. The stepper keeps no state of its own between steps.

    Attributes:
        parallel: The loss function and its gradient synchronization.
        loader: Reads training blocks by position.
        hardware: The device and precision.
        trainer: The size of a step, the clipping norm and the limits of a loss spike.
        group: The ranks that train together.
        hooks: Functions to call during a step.
    """

    parallel: ParallelLoss
    loader: BlockLoader
    hardware: Hardware
    trainer: TrainerConfig
    group: ProcessGroup = field(default_factory=SingleProcess)
    hooks: StepHooks = field(default_factory=StepHooks)

    @property
    def blocks(self) -> int:
        """Return the number of token blocks in one step, the global batch."""
        return self.trainer.batch_size * self.trainer.grad_accum

    @property
    def grad_clip(self) -> float:
        """Return the largest allowed gradient norm; 0 turns clipping off."""
        return self.trainer.grad_clip

    @cached_property
    def shard(self) -> StepShard:
        """Return the micro-batches of each step that this rank trains on."""
        size, trainer = self.group.size, self.trainer
        return shard_step(self.group.rank, size, trainer.batch_size, trainer.grad_accum)

    def step(self, state: TrainingState, position: int) -> StepResult:
        """Train on the `blocks` blocks that start at `position`.

        On any exception but HalfApplied, the state is the same as before the step, including the
        random generators and the model's buffers.

        Raises:
            NonFiniteLoss: The loss or the gradient norm is not finite.
            LossSpike: The loss is far above the recent ones.
            StepAbandoned: The step would not end before the deadline.
            HalfApplied: The update itself failed.
        """
        undo = _ForwardUndo(state.model)
        try:
            self.hooks.reseed(state.counters.step)
            loss = self.group.all_reduce_mean(self._accumulate(state, position))
            norm = self._gradient_norm(state)
            self._check(state, loss, norm)
        except BaseException:
            state.optimizer.zero_grad()
            undo()
            raise
        try:
            if math.isfinite(norm):
                state.optimizer.step(state.scaler)
            state.scaler.update()
        except StoppedUnsaved:
            raise
        except BaseException as error:
            is_named = isinstance(error, PluginError)
            reason = str(error) if is_named else f"{type(error).__name__}: {error}"
            raise HalfApplied(
                f"the update of the weights failed halfway ({reason}), so this step is not saved. "
                "Resume from the last checkpoint with +resume=latest"
            ) from error
        finally:
            state.optimizer.zero_grad()
        return StepResult(loss, norm)

    def warm_up_ddp(self, state: TrainingState) -> None:
        """Run one forward and backward pass before the first step, without changing the state.

        DistributedDataParallel reorders its gradient buckets in the second step of a process, and
        with them the order in which the gradients of three or more ranks are added. Without this
        pass, a resumed run would differ in its last bits from an uninterrupted one.
        """
        undo = _ForwardUndo(state.model)
        inputs, targets = self.loader.batch(0, self.shard[0].count)
        with self.hardware.autocast():
            loss = self.parallel.loss(self._move(inputs), self._move(targets))
        torch.autograd.backward(loss)
        state.optimizer.zero_grad()
        undo()

    def _accumulate(self, state: TrainingState, position: int) -> float:
        losses = []
        for number, part in enumerate(self.shard):
            if self.hooks.should_abandon(1 - number / len(self.shard)):
                raise StepAbandoned
            self.hooks.on_micro_batch(number + 1, len(self.shard))
            inputs, targets = self.loader.batch(position + part.offset, part.count)
            is_last = part is self.shard[-1]
            with self.parallel.gradient_sync(is_last), self.hardware.autocast():
                loss = self.parallel.loss(self._move(inputs), self._move(targets)) / len(self.shard)
            torch.autograd.backward(state.scaler.scale(loss))
            losses.append(loss.detach())
        return float(torch.stack(losses).sum())

    def _gradient_norm(self, state: TrainingState) -> float:
        """Unscale and clip the gradients; return their norm before clipping."""
        for optimizer in state.optimizer.torch_optimizers:
            state.scaler.unscale_(optimizer)
        limit = self.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(state.optimizer.parameters(), limit)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # if sharded

    def _check(self, state: TrainingState, loss: float, norm: float) -> None:
        check_loss(loss, norm, norm_may_overflow=state.scaler.is_enabled())
        if self.trainer.spike_zscore is not None:
            recent = state.counters.anomalies.recent
            check_spike(loss, recent, self.trainer.spike_window, self.trainer.spike_zscore)

    def _move(self, tensor: Tensor) -> Tensor:
        if self.hardware.device.type == "cuda":
            return tensor.pin_memory().to(self.hardware.device, non_blocking=True)
        return tensor.to(self.hardware.device)


class _ForwardUndo:
    """Undoes what forward passes change: the random generators, and the buffers that are saved.

    A buffer that is not part of the state dict is computed by the model and cannot be state.
    """

    def __init__(self, model: nn.Module) -> None:
        self._generators = capture_generators()
        self._buffers = [
            (module, name, buffer, buffer.clone())
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set
        ]

    def __call__(self) -> None:
        for module, name, buffer, copy in self._buffers:
            setattr(module, name, buffer.copy_(copy))
        restore_generators(self._generators)
