"""What a drill found out, and what follows from it: numbers only, no files and no processes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2ckpt.checkpoint.policy import COPIES, Retention, most_files
from gpt2ckpt.recovery_drill.filesystem_checks import FileSystem

STATE = ("step", "epoch", "tokens_seen", "data.position", "train_loss", "rng", "schedule", "scaler")


@dataclass(frozen=True)
class Settings:
    """What the user's own run would be. An epoch and the run in steps."""

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
    """Which file it was writing, after how many steps; and the step of the state that went on."""

    writing: str
    steps: int
    resumed_from: int


@dataclass(frozen=True)
class Recovery:
    """What became of the training that was killed. `differing` names what was not the same."""

    kill: Kill
    steps: int
    replay: str
    tensors: int
    differing: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        return not self.differing


@dataclass(frozen=True)
class Cost:
    """Measured on these settings. Times in seconds, sizes in bytes; a step without saves."""

    step: float
    first_stall: float
    stall: float
    durable_after: float
    restart: float
    size: int
    free: int

    def interval(self, save_every: int) -> float:
        """Seconds from one save to the next. A save that comes before the last is written waits."""
        training = save_every * self.step
        return training + max(self.stall, self.durable_after - training)

    def stall_fraction(self, save_every: int) -> float:
        """Of the time, how much the training waits for saves."""
        return 1 - save_every * self.step / self.interval(save_every)

    def lost_by_crash(self, save_every: int) -> float:
        """Seconds of work that a crash costs at most: it comes just before a save is durable."""
        return self.interval(save_every) + self.durable_after

    def written_per_hour(self, save_every: int) -> float:
        """Bytes that regular saves write."""
        return COPIES * self.size * 3600 / self.interval(save_every)


@dataclass(frozen=True)
class Disk:
    """What the checkpoints of the whole run take at most, and if that is too much, when it is full.

    Bytes; `hours` is None where everything fits.
    """

    pools: int
    epochs: int
    hours: float | None


@dataclass(frozen=True)
class DrillResult:
    """All of it."""

    settings: Settings
    file_system: FileSystem
    recovery: Recovery
    cost: Cost

    @property
    def passed(self) -> bool:
        return self.recovery.is_exact and not self.file_system.problems


def disk_need(settings: Settings, cost: Cost) -> Disk:
    """How long the disk lasts: the pools fill up first, from then on only epochs come on top."""
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
    """The plain values in which two checkpoints differ, of those that a step changes."""
    lines = []
    for key in STATE:
        a, b = _at(ours, key), _at(theirs, key)
        if a != b:
            lines.append(f"{key}: {a} and {b}"[:100])
    return lines


def differing_losses(
    ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]], steps: int
) -> list[str]:
    """Where the histories of two trainings of `steps` steps differ, each step once in either."""
    lines = []
    for name, events in (("killed and resumed", ours), ("undisturbed", theirs)):
        if [event["step"] for event in events] != list(range(1, steps + 1)):
            lines.append(f"the history of the {name} training has not every step once")
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
