"""The results of a drill and what follows from them: pure functions of numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2ckpt.checkpoint.retention import COPIES, Retention, most_files
from gpt2ckpt.recovery_drill.filesystem_checks import FileSystem

STATE = ("step", "epoch", "tokens_seen", "data.position", "train_loss", "rng", "schedule", "scaler")


@dataclass(frozen=True)
class Settings:
    """The settings of the real run, which the drill projects its measurements to."""

    run_parent: str
    total_steps: int
    steps_per_epoch: float
    save_every: int
    keep_rolling: int
    keep_emergency: int
    keep_epochs: int | None
    save_epochs: bool
    ranks: int


@dataclass(frozen=True)
class Kill:
    """The kill: the file being written, the steps trained, and the step that was resumed from."""

    writing: str
    steps: int
    resumed_from: int


@dataclass(frozen=True)
class Recovery:
    """How the killed training ended, compared with the training that was not killed.

    `identical_steps` were trained again after the kill with the same losses. `differing` has a line
    for each difference.
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
    """Measured times in seconds and sizes in bytes; `step` is the time of a step without a save."""

    step: float
    first_stall: float
    stall: float
    durable_after: float
    restart: float
    size: int
    free: int

    def interval(self, save_every: int) -> float:
        """Return the seconds from one save to the next; a save waits for an unfinished one."""
        training = save_every * self.step
        return training + max(self.stall, self.durable_after - training)

    def stall_fraction(self, save_every: int) -> float:
        """Return the fraction of the time that the training waits for saves."""
        return 1 - save_every * self.step / self.interval(save_every)

    def lost_by_crash(self, save_every: int) -> float:
        """Return the seconds of work that a crash just before a save is durable costs."""
        return self.interval(save_every) + self.durable_after

    def written_per_hour(self, save_every: int) -> float:
        """Return the bytes that regular saves write in an hour."""
        return COPIES * self.size * 3600 / self.interval(save_every)


@dataclass(frozen=True)
class Disk:
    """The most bytes that the checkpoints of the run take, and the hours until the disk is full.

    `hours` is None if all checkpoints fit.
    """

    pools: int
    epochs: int
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
    """Return the disk need: first the pools fill up, then epoch checkpoints are added."""
    retention = Retention(settings.keep_rolling, settings.keep_emergency, settings.keep_epochs)
    count = int(settings.total_steps / settings.steps_per_epoch) if settings.save_epochs else 0
    pools = most_files(retention, 0) * cost.size
    epochs = most_files(retention, count) * cost.size - pools
    if pools + epochs <= cost.free:
        return Disk(pools, epochs, None)
    if pools > cost.free:
        seconds = cost.free / cost.size * cost.interval(settings.save_every)
    else:
        seconds = (cost.free - pools) / cost.size * settings.steps_per_epoch * cost.step
    return Disk(pools, epochs, seconds / 3600)


def differing_state(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Return a line for each value (not a tensor) that a step changes and that differs."""
    lines = []
    for key in STATE:
        a, b = _at(ours, key), _at(theirs, key)
        if a != b:
            lines.append(f"{key}: {a} and {b}"[:100])
    return lines


def differing_losses(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], steps: int
) -> list[str]:
    """Return where the losses of two trainings differ; each must have each step exactly once."""
    lines = []
    for name, events in (("killed and resumed", ours), ("undisturbed", theirs)):
        if [event["step"] for event in events] != list(range(1, steps + 1)):
            lines.append(
                f"metrics.jsonl of the {name} training does not hold each step exactly once"
            )
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
