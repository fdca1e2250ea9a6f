"""Compares the losses of steps that are trained again after a crash with those logged before."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2ckpt.loggers import metrics_file

Events = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class ReplayResult:
    """The number of identical steps, and the first that differs as text (None if none does)."""

    identical_steps: int
    first_difference: str | None

    def __str__(self) -> str:
        return f"replay: {self.first_difference or f'{self.identical_steps:,} steps identical'}"


class ReplayCheck:
    """Compares the losses of repeated steps with the earlier losses; reports after the last step.

    The earlier losses stay in their file until `close`, so that a kill only interrupts the
    comparison: the next resume starts by comparing the steps that metrics.jsonl holds by then.
    """

    def __init__(self, expected: Events, retrained: Events = (), file: Path | None = None) -> None:
        """Compare the steps that were repeated before this process.

        Args:
            expected: The events logged when the steps were first trained.
            retrained: The events of the steps that were repeated so far.
            file: The file of the expected events, which `close` deletes.
        """
        self._expected = dict(_losses(expected))
        self._last = max(self._expected, default=-1)
        self._same = 0
        self._first_difference: str | None = None
        self._file = file
        for step, loss in _losses(retrained):
            self._compare(step, loss)

    @classmethod
    def of_run(cls, waiting: Path, history: Path) -> "ReplayCheck":
        """Return the check of a resumed run.

        Args:
            waiting: The file of the expected events; without it there is nothing to compare.
            history: metrics.jsonl.
        """
        if not waiting.exists():
            return cls([])
        return cls(metrics_file.read(waiting), metrics_file.read(history), waiting)

    def compare(self, step: int, loss: float) -> ReplayResult | None:
        """Compare the loss of a step; return the result after the last repeated step, else None."""
        self._compare(step, loss)
        return ReplayResult(self._same, self._first_difference) if step == self._last else None

    def close(self) -> None:
        """Delete the file of the expected losses: call it when the result is recorded."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # if it fails, the next resume compares again
                self._file.unlink()

    def interrupted(self, step: int) -> str | None:
        """Return the result so far if there are steps to compare after `step`; else None."""
        if step >= self._last:
            return None
        so_far = (
            self._first_difference or f"{self._same:,} of {len(self._expected):,} steps identical"
        )
        return f"replay: {so_far}, the rest is compared after a resume"

    def _compare(self, step: int, loss: float) -> None:
        expected = self._expected.get(step)
        if expected is not None and expected == loss:
            self._same += 1
        elif expected is not None and self._first_difference is None:
            self._first_difference = f"step {step} differs: loss {expected} then, {loss} now"


def _losses(events: Events) -> list[tuple[int, float]]:
    found = [event for event in events if "train_loss" in event]
    return [(int(event["step"]), float(event["train_loss"])) for event in found]
