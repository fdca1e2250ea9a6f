"""The results of a drill, and the costs that are computed from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2ckpt.checkpoint.retention import COPIES, Retention, most_files
from gpt2ckpt.config.schema import CheckpointConfig
from gpt2ckpt.recovery_drill.filesystem_checks import FileSystem

STATE = (
    *("step", "epoch", "tokens_seen", "data.position", "train_loss"),
    *("rng", "schedule", "scaler", "callbacks"),
)


@dataclass(frozen=True)
class Settings:
    """The settings of the real run that determine its costs."""

    total_steps: int
    steps_per_epoch: float
    checkpoint: CheckpointConfig
    ranks: int


@dataclass(frozen=True)
class Kill:
    """The kill: the file being written, the steps trained before, and the step resumed from."""

    writing: str
    steps: int
    resumed_from: int


@dataclass(frozen=True)
class Recovery:
    """The killed and resumed run, compared with the reference run, which was not killed.

    Attributes:
        kill: the kill.
        steps: the length of both runs in steps.
        identical_steps: the number of steps that were trained again with identical losses.
        tensors: the number of tensors compared.
        differing: a line for each difference.
    """

    kill: Kill
    steps: int
    identical_steps: int
    tensors: int
    differing: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        return not self.differing


@dataclass(frozen=True)
class Cost:
    """Measured times in seconds and sizes in bytes; `step` does not include saves."""

    step: float
    first_stall: float
    stall: float
    durable_after: float
    restart: float
    size: int
    free: int

    def interval(self, save_every: int) -> float:
        """Return the seconds between two saves; a save waits until the previous one has ended."""
        training = save_every * self.step
        return training + max(self.stall, self.durable_after - training)

    def stall_fraction(self, save_every: int) -> float:
        """Return the fraction of time in which training waits for saves."""
        return 1 - save_every * self.step / self.interval(save_every)

    def lost_by_crash(self, save_every: int) -> float:
        """Return the seconds of work that a crash loses just before a save is durable."""
        return self.interval(save_every) + self.durable_after

    def written_per_hour(self, save_every: int) -> float:
        """Return the bytes that regular saves write per hour."""
        return COPIES * self.size * 3600 / self.interval(save_every)


@dataclass(frozen=True)
class Disk:
    """The most disk space that the checkpoints of the run take.

    Attributes:
        epochs: bytes of the epoch checkpoints.
        others: bytes of all other checkpoints.
        hours: hours until the disk is full; None if all checkpoints fit.
    """

    epochs: int
    others: int
    hours: float | None


@dataclass(frozen=True)
class DrillResult:
    """Everything that the drill prints."""

    settings: Settings
    file_system: FileSystem
    recovery: Recovery
    cost: Cost

    @property
    def passed(self) -> bool:
        return self.recovery.is_exact and not self.file_system.problems


def disk_need(settings: Settings, cost: Cost) -> Disk:
    """Return the disk need. Epoch checkpoints are assumed to use the space that others leave."""
    config = settings.checkpoint
    retention = Retention(config.keep_rolling, config.keep_emergency, config.keep_epochs)
    count = int(settings.total_steps / settings.steps_per_epoch) if config.save_epochs else 0
    others = most_files(retention, 0) * cost.size
    epochs = most_files(retention, count) * cost.size - others
    if others + epochs <= cost.free:
        return Disk(epochs, others, None)
    if others > cost.free:
        seconds = cost.free / cost.size * cost.interval(config.save_every)
    else:
        seconds = (cost.free - others) / cost.size * settings.steps_per_epoch * cost.step
    return Disk(epochs, others, seconds / 3600)


def differing_state(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Return a line for each key of STATE whose values differ."""
    lines = []
    for key in STATE:
        a, b = _at(ours, key), _at(theirs, key)
        if a != b:
            lines.append(f"{key}: {a} and {b}"[:100])
    return lines


def differing_losses(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], steps: int
) -> list[str]:
    """Return a line for the first differing loss, or for each run that lacks or repeats steps."""
    lines = []
    for name, events in (("killed", ours), ("reference", theirs)):
        if [event["step"] for event in events] != list(range(1, steps + 1)):
            lines.append(f"metrics.jsonl of the {name} run does not have each step exactly once")
    if lines:
        return lines
    for a, b in zip(ours, theirs, strict=True):
        if a["train_loss"] != b["train_loss"]:
            return [f"step {a['step']}: loss {a['train_loss']} and {b['train_loss']}"]
    return []


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
