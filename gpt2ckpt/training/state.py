"""The training state: what a checkpoint holds, captured and brought back."""

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
    RunIdentity,
    ScheduleState,
    Versions,
)
from gpt2ckpt.config.schema import TrainConfig
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.model.build import build_on_meta
from gpt2ckpt.optim.optimizers import OptimizerSet, build_optimizer
from gpt2ckpt.parallel.process_group import ProcessGroup, SingleProcess
from gpt2ckpt.training.rng import capture_generators, restore_generators
from gpt2ckpt.training.source_identity import code_identity


@dataclass
class Counters:
    """How far a run has come. `position` counts blocks over all epochs.

    `evaluated_step` is the step of the last evaluation; a save may come before the one that is due.
    `evaluated_on` is a digest of its blocks.
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
        """The best evaluation so far."""
        if self.best_val_loss is None or self.best_step is None:
            return None
        return Best(self.best_val_loss, self.best_step)

    def set_best(self, best: Best | None) -> None:
        """Remember the best evaluation so far."""
        self.best_val_loss = best.loss if best else None
        self.best_step = best.step if best else None

    def epoch(self, blocks_per_epoch: int) -> int:
        """Full passes over the data so far."""
        return self.position // blocks_per_epoch


@dataclass(frozen=True)
class Provenance:
    """What stays the same over a process and goes into each of its checkpoints."""

    run: RunIdentity
    config: dict[str, Any]
    overrides: list[str]
    data: DataIdentity
    environment: Environment


@dataclass
class TrainingState:
    """Everything that a step changes."""

    model: nn.Module
    optimizer: OptimizerSet
    scaler: torch.amp.GradScaler
    counters: Counters
    group: ProcessGroup = field(default_factory=SingleProcess)
    is_sharded: bool = False  # each rank of the team holds a part of every tensor

    def capture(
        self, provenance: Provenance, epoch: int, schedule: ScheduleState, reason: str
    ) -> CheckpointState:
        """Return the state to be saved. Its tensors are those that are trained, not copies.

        If the state is sharded, all ranks must call this; only the first gets full tensors.
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
            model=self._gather(self.model.state_dict(keep_vars=self.is_sharded)),
            optimizer=self._gather(self.optimizer.state_dict()),
            rng=capture_generators(),
        )

    def is_finite(self) -> bool:
        """Whether each weight that this rank has is a finite number, and each of its moments."""
        moments = self.optimizer.state_dict()["state"].values()
        values = [*self.model.parameters(), *(v for state in moments for v in state.values())]
        return all(_is_finite(value) for value in values if isinstance(value, torch.Tensor))

    def restore(self, saved: CheckpointState) -> None:
        """Restore a captured state. Raises CheckpointError if its shapes are not those of this."""
        try:
            self._restore(saved)
        except torch.OutOfMemoryError:
            raise
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise CheckpointError(
                f"the state in the checkpoint cannot be restored: {error}"
            ) from error

    def _restore(self, saved: CheckpointState) -> None:
        try:
            self.model.load_state_dict(self._shard(saved.model))
        except (RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise CheckpointError(
                f"the model in the checkpoint has another shape: {reason}"
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
    """Raise CheckpointError if `restore` will refuse the saved state, before anything is written.

    Restores it into a model on PyTorch's meta device, whose tensors have shapes and no memory. The
    weights must have the shapes of that model already. Changes the random generators, which a
    training seeds or restores again.
    """
    model = build_on_meta(config.model)
    optimizer = build_optimizer(config.optimizer, model, "meta")
    scaler = torch.amp.GradScaler("cpu", enabled=bool(saved.scaler))
    with warnings.catch_warnings(action="ignore"):  # nothing is copied to the meta device
        TrainingState(model, optimizer, scaler, Counters()).restore(saved)


def _is_finite(tensor: torch.Tensor) -> bool:
    """A sum takes one pass and no memory; it can overflow, and then each element is looked at."""
    tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor.detach()
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())


def versions() -> Versions:
    """Return the versions of the libraries and of the code that this process trains with."""
    return Versions(
        gpt2ckpt=gpt2ckpt.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        **code_identity(),
    )
