"""The types that all loggers share: a logged event, and the protocol of a logger."""

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from gpt2ckpt.units import perplexity

MetricRecord: TypeAlias = Mapping[str, int | float]
"""One logged event: `step` (optimizer steps done), `time` (unix seconds), and any of train_loss,
train_loss_mean, val_loss (nats per token), lr, grad_norm, tokens_per_s, and so on. Keys are
snake_case."""


class Logger(Protocol):
    """The interface of a logger. Only rank 0 has loggers, and uses each from one thread."""

    def log(self, event: MetricRecord) -> None:
        """Log one event."""

    def text(self, step: int, text: str) -> None:
        """Log a text sample generated after `step` steps."""

    def flush(self) -> None:
        """Pass everything logged so far to the operating system."""

    def close(self) -> None:
        """Flush and close. Nothing may be logged afterwards."""


def scalars(event: MetricRecord) -> dict[str, float]:
    """Return the values of an event by scalar name, as TensorBoard and W&B show them.

    `step` and `time` are axes, so they are omitted. For an evaluation, val/perplexity is added, and
    `tokens_seen` is omitted, because training steps log it.
    """
    is_evaluation = "val_loss" in event
    axes = {"step", "time", *(["tokens_seen"] if is_evaluation else [])}
    values = {scalar_name(key): float(value) for key, value in event.items() if key not in axes}
    if is_evaluation:
        values["val/perplexity"] = perplexity(float(event["val_loss"]))
    return values


def scalar_name(key: str) -> str:
    """Return the scalar name of a key: train/loss, val/loss, val/best_loss or train/<key>."""
    if key == "best_val_loss":
        return "val/best_loss"
    for part in ("train", "val"):
        if key.startswith(f"{part}_"):
            return f"{part}/{key.removeprefix(f'{part}_')}"
    return f"train/{key}"
