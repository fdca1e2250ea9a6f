"""Comparing steps that are trained a second time after a crash with what they gave the first."""

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpt2ckpt.loggers import metrics_file

Events = Iterable[Mapping[str, Any]]


class ReplayCheck:
    """Takes the losses of re-trained steps and says, after the last, whether they were the same.

    What they are compared with stays in its file until then, so that a kill in the middle of it
    only interrupts the comparison: what is in the history by now is compared first.
    """

    def __init__(self, expected: Events, retrained: Events = (), file: Path | None = None) -> None:
        """`expected` are the events of the first time, `retrained` those of the second so far.

        `file` is deleted after the last comparison.
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
        """Return the check of a run that resumes with the files `waiting` and `history`."""
        if not waiting.exists():
            return cls([])
        return cls(metrics_file.read(waiting), metrics_file.read(history), waiting)

    def compare(self, step: int, loss: float) -> str | None:
        """The verdict when `step` was the last one to compare; else None."""
        self._compare(step, loss)
        if step != self._last:
            return None
        if self._file is not None:
            with contextlib.suppress(OSError):  # then the next resume compares once more
                self._file.unlink()
        return f"replay: {self._first_difference or f'{self._same:,} steps identical'}"

    def interrupted(self, step: int) -> str | None:
        """What can be said after `step`, if the last one to compare comes later."""
        if step >= self._last:
            return None
        so_far = (
            self._first_difference or f"{self._same:,} of {len(self._expected):,} steps identical"
        )
        return f"replay: {so_far}, the rest is compared when the run goes on"

    def _compare(self, step: int, loss: float) -> None:
        expected = self._expected.get(step)
        if expected is not None and expected == loss:
            self._same += 1
        elif expected is not None and self._first_difference is None:
            self._first_difference = f"step {step} differs: loss {expected} then, {loss} now"


def _losses(events: Events) -> list[tuple[int, float]]:
    found = [event for event in events if "train_loss" in event]
    return [(int(event["step"]), float(event["train_loss"])) for event in found]
