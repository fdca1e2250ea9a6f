"""The training state: captured for a checkpoint, and restored from one."""

import math
import platform
import warnings
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

import gpt2ckpt
from gpt2ckpt.checkpoint.best import Best
from gpt2ckpt.checkpoint.format import FORMAT
from gpt2ckpt.checkpoint.state import (
    AnomalyCounts,
    CheckpointState,
    DataIdentity,
    DataState,
    Environment,
    LossSum,
    PluginIdentity,
    RunIdentity,
    ScheduleState,
    Versions,
)
from gpt2ckpt.config.options import PluginError
from gpt2ckpt.config.schema import TrainConfig
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.model.build import build_model, build_on_meta
from gpt2ckpt.optim.optimizers import OptimizerSet, build_optimizer
from gpt2ckpt.parallel.process_group import ProcessGroup, SingleProcess
from gpt2ckpt.training.callbacks import Callbacks
from gpt2ckpt.training.rng import capture_generators, restore_generators
from gpt2ckpt.training.source_identity import code_identity

# What PyTorch, an optimizer or a generator raises for a state that does not fit.
WRONG_STATE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass
class Counters:
    """The progress of a run.

    `position` counts token blocks over all epochs. `evaluated_step` is the step of the last
    evaluation, and `evaluated_on` is the digest of its token blocks. A state that is saved before
    the evaluation of its step has an older `evaluated_step`.
    """

    step: int = 0
    position: int = 0
    tokens_seen: int = 0
    train_loss: float | None = None
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    evaluated_step: int = 0
    evaluated_on: str | None = None
    unlogged: LossSum = field(default_factory=LossSum)
    anomalies: AnomalyCounts = field(default_factory=AnomalyCounts)

    @property
    def best(self) -> Best | None:
        """Return the best evaluation so far."""
        if self.best_val_loss is None or self.best_step is None:
            return None
        return Best(self.best_val_loss, self.best_step)

    def set_best(self, best: Best | None) -> None:
        """Set the best evaluation so far."""
        self.best_val_loss = best.loss if best else None
        self.best_step = best.step if best else None

    def epoch(self, blocks_per_epoch: int) -> int:
        """Return the number of complete passes over the training data."""
        return self.position // blocks_per_epoch


@dataclass(frozen=True)
class Provenance:
    """The parts that are the same in all checkpoints of one process."""

    run: RunIdentity
    config: dict[str, Any]
    overrides: list[str]
    data: DataIdentity
    environment: Environment
    plugins: list[PluginIdentity] | None = None


@dataclass
class TrainingState:
    """Everything that a step changes."""

    model: nn.Module
    optimizer: OptimizerSet
    scaler: torch.amp.GradScaler
    counters: Counters
    group: ProcessGroup = field(default_factory=SingleProcess)
    is_sharded: bool = False  # each rank holds a part of every tensor

    def capture(
        self,
        provenance: Provenance,
        epoch: int,
        schedule: ScheduleState,
        reason: str,
        callbacks: Callbacks,
    ) -> CheckpointState:
        """Return the state to save. Its tensors are the live ones, not copies.

        If the state is sharded, all ranks must call this together; only the first receives tensors.
        """
        counters = self.counters
        return CheckpointState(
            format=FORMAT,
            step=counters.step,
            epoch=epoch,
            tokens_seen=counters.tokens_seen,
            train_loss=counters.train_loss,
            val_loss=counters.val_loss,
            best_val_loss=counters.best_val_loss,
            best_step=counters.best_step,
            reason=reason,
            saved_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            run=provenance.run,
            config=provenance.config,
            overrides=provenance.overrides,
            data=DataState(
                **vars(provenance.data),
                position=counters.position,
                evaluated_step=counters.evaluated_step,
                evaluated_on=counters.evaluated_on,
                unlogged=counters.unlogged,
                anomalies=counters.anomalies,
            ),
            schedule=schedule,
            environment=provenance.environment,
            versions=versions(),
            scaler=self.scaler.state_dict(),
            plugins=provenance.plugins,
            stopped_by=callbacks.stopped_by,
            model=self._gather(self.model.state_dict(keep_vars=self.is_sharded)),
            optimizer=self._gather(self.optimizer.state_dict()),
            rng=capture_generators(),
            callbacks=callbacks.capture(),
        )

    def is_finite(self) -> bool:
        """Return whether all weights and optimizer moments on this rank are finite."""
        moments = self.optimizer.state_dict()["state"].values()
        values = [*self.model.parameters(), *(v for state in moments for v in state.values())]
        return all(_is_finite(value) for value in values if isinstance(value, torch.Tensor))

    def restore(self, saved: CheckpointState) -> None:
        """Restore a saved state. Raises CheckpointError if it does not fit this model."""
        try:
            self._restore(saved)
        except torch.OutOfMemoryError:
            raise
        except WRONG_STATE as error:
            raise CheckpointError(
                f"the training state in the checkpoint cannot be restored: {error}. Resume from a "
                "different checkpoint"
            ) from error

    def _restore(self, saved: CheckpointState) -> None:
        try:
            self.model.load_state_dict(self._shard(saved.model))
        except (RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise CheckpointError(
                f"the model in the checkpoint has a different shape: {reason}. Resume with the "
                "model that the checkpoint was trained with"
            ) from error
        self.optimizer.load_state_dict(saved.optimizer)
        if self.scaler.is_enabled() and saved.scaler:
            self.scaler.load_state_dict(saved.scaler)
        restore_generators(saved.rng)
        self.counters = Counters(
            step=saved.step,
            position=saved.data.position,
            tokens_seen=saved.tokens_seen,
            train_loss=saved.train_loss,
            val_loss=saved.val_loss,
            best_val_loss=saved.best_val_loss,
            best_step=saved.best_step,
            evaluated_step=saved.data.evaluated_step,
            evaluated_on=saved.data.evaluated_on,
            unlogged=replace(saved.data.unlogged),
            anomalies=replace(saved.data.anomalies),
        )

    def _gather(self, tree: dict[str, Any]) -> dict[str, Any]:
        if not self.is_sharded:
            return tree
        from gpt2ckpt.parallel.fsdp import gather_full_tensors

        gathered: dict[str, Any] = gather_full_tensors(tree, keep=self.group.is_first)
        return gathered

    def _shard(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.is_sharded:
            return tensors
        from gpt2ckpt.parallel.fsdp import shard_like_model

        return shard_like_model(tensors, self.model)


def check_restorable(saved: CheckpointState, config: TrainConfig) -> None:
    """Raise CheckpointError if `restore` would refuse the saved state; call it before any write.

    The test restores the state on PyTorch's meta device, where tensors have shapes but no memory,
    and tries a step of a plugin's optimizer there. The shapes of the weights must be checked
    already. The random generators change; a session seeds or restores them later.
    """
    model = build_on_meta(config.model)
    try:
        optimizer = build_optimizer(config.optimizer, model)
    except PluginError:  # it may need values, or fail in the session, too
        model = build_model(config.model)
        optimizer = build_optimizer(config.optimizer, model)
    scaler = torch.amp.GradScaler("cpu", enabled=bool(saved.scaler))
    with warnings.catch_warnings(action="ignore"):  # nothing is copied to the meta device
        TrainingState(model, optimizer, scaler, Counters()).restore(saved)
    is_meta = all(parameter.is_meta for parameter in model.parameters())
    if is_meta and optimizer.option is not None and not optimizer.option.is_built_in:
        optimizer.check_step(saved.optimizer, build_optimizer(config.optimizer, model))


def _is_finite(tensor: torch.Tensor) -> bool:
    """Return whether all elements are finite.

    The sum needs one pass and no memory. It can overflow; only then each element is checked.
    """
    if not tensor.is_floating_point():
        return True
    tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor.detach()
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())


def versions() -> Versions:
    """Return the versions of the libraries and the code of this process."""
    return Versions(
        gpt2ckpt=gpt2ckpt.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        **code_identity(),
    )
