"""What is logged, and to what: the two types that all loggers share."""

from collections.abc import Mapping
from typing import Protocol, TypeAlias

Event: TypeAlias = Mapping[str, int | float]
"""One logged event: `step` (optimizer steps done), `time` (unix seconds), and any of train_loss,
train_loss_mean, val_loss (nats per token), lr, grad_norm, tokens_per_s, and so on. Keys are
snake_case."""


class Logger(Protocol):
    """Something that takes events. Used by one thread of one process (rank 0)."""

    def log(self, event: Event) -> None:
        """Take one event."""

    def text(self, step: int, text: str) -> None:
        """Take a text sample generated after `step` steps."""

    def flush(self) -> None:
        """Hand everything taken so far to the operating system."""

    def close(self) -> None:
        """Flush and let go; nothing may follow."""


class Nowhere:
    """The logger of a rank whose losses another rank logs."""

    def log(self, event: Event) -> None:
        """Nothing."""

    def text(self, step: int, text: str) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def curves(event: Event) -> dict[str, float]:
    """The values of an event by the name of their curve: train_loss is train/loss, val_loss is
    val/loss, anything else train/<key>. `step` and `time` are axes, not curves."""
    return {
        _curve(key): float(value) for key, value in event.items() if key not in ("step", "time")
    }


def _curve(key: str) -> str:
    for part in ("train", "val"):
        if key.startswith(f"{part}_"):
            return f"{part}/{key.removeprefix(f'{part}_')}"
    return f"train/{key}"
