"""What is logged, and to what: the two types that all loggers share."""

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from gpt2ckpt.units import perplexity

MetricRecord: TypeAlias = Mapping[str, int | float]
"""One logged event: `step` (optimizer steps done), `time` (unix seconds), and any of train_loss,
train_loss_mean, val_loss (nats per token), lr, grad_norm, tokens_per_s, and so on. Keys are
snake_case."""


class Logger(Protocol):
    """Something that takes events. Used by one thread of one process (rank 0)."""

    def log(self, event: MetricRecord) -> None:
        """Take one event."""

    def text(self, step: int, text: str) -> None:
        """Take a text sample generated after `step` steps."""

    def flush(self) -> None:
        """Hand everything taken so far to the operating system."""

    def close(self) -> None:
        """Flush and let go; nothing may follow."""


class NullLogger:
    """The logger of a rank whose losses another rank logs."""

    def log(self, event: MetricRecord) -> None:
        """Nothing."""

    def text(self, step: int, text: str) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def rewind(self, step: int) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def scalars(event: MetricRecord) -> dict[str, float]:
    """Return the values of an event by the name of their curve.

    train_loss is train/loss, val_loss is val/loss, best_val_loss is val/best_loss, anything else
    train/<key>. `step` and `time` are axes, not curves, and so are the tokens of an evaluation:
    the training logs them. Of a validation loss there is also the perplexity.
    """
    is_evaluation = "val_loss" in event
    axes = {"step", "time", *(["tokens_seen"] if is_evaluation else [])}
    values = {scalar_name(key): float(value) for key, value in event.items() if key not in axes}
    if is_evaluation:
        values["val/perplexity"] = perplexity(float(event["val_loss"]))
    return values


def scalar_name(key: str) -> str:
    """Return the name of the curve of an event's key."""
    if key == "best_val_loss":
        return "val/best_loss"
    for part in ("train", "val"):
        if key.startswith(f"{part}_"):
            return f"{part}/{key.removeprefix(f'{part}_')}"
    return f"train/{key}"
