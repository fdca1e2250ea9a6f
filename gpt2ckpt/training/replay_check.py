"""Comparing steps that are trained a second time after a crash with what they gave the first."""

from collections.abc import Iterable, Mapping
from typing import Any


class ReplayCheck:
    """Takes the losses of re-trained steps and says, after the last, whether they were the same."""

    def __init__(self, removed: Iterable[Mapping[str, Any]]) -> None:
        """`removed` are the events that a resume took out of metrics.jsonl."""
        events = (event for event in removed if "train_loss" in event)
        self._expected = {int(event["step"]): float(event["train_loss"]) for event in events}
        self._last = max(self._expected, default=-1)
        self._same = 0
        self._first_difference: str | None = None

    def compare(self, step: int, loss: float) -> str | None:
        """The verdict when `step` was the last one to compare; else None."""
        expected = self._expected.get(step)
        if expected is not None and expected == loss:
            self._same += 1
        elif expected is not None and self._first_difference is None:
            self._first_difference = f"step {step} differs: loss {expected} then, {loss} now"
        if step != self._last:
            return None
        return f"replay: {self._first_difference or f'{self._same} steps identical'}"
