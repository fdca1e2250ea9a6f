"""Decides which step and which save fit into the grace period after a signal.

A scheduler sends a signal, and kills the process when the grace period is over. `Watchdog` in
training.py ends the process at that time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

MARGIN = 1.2  # allows for a save that is slower than the last ones


class StepAbandoned(Exception):
    """Raised when a step would not end in time; the state from before the step is kept."""


@dataclass
class Deadline:
    """The time left in the grace period.

    Args:
        grace: seconds from the signal to the end of the process; None for no limit.
        stop_requested_at: returns the time.monotonic() of the signal; None if there was none.
        step_seconds: how long the last step took.
    """

    grace: float | None
    stop_requested_at: Callable[[], float | None]
    step_seconds: float = 0.0

    def left(self) -> float | None:
        """Return the seconds left, negative after the deadline; None without a deadline."""
        stop_requested_at = self.stop_requested_at()
        if self.grace is None or stop_requested_at is None:
            return None
        return self.grace - (time.monotonic() - stop_requested_at)


def save_fits(seconds: float | None, left: float | None) -> bool:
    """Return whether a save ends in time.

    Args:
        seconds: the expected time of the save; None if none was measured, which counts as fitting.
        left: the seconds left; None for no limit.
    """
    return left is None or seconds is None or seconds * MARGIN <= left


def step_fits(
    fraction_left: float, step_seconds: float, save: float | None, left: float | None
) -> bool:
    """Return whether the rest of a step and the save after it end in time.

    If they do not, the step is abandoned, since the state before it may be saved in time.

    Args:
        fraction_left: the fraction of the step that remains.
        step_seconds: the time of a complete step.
        save: the expected seconds of a save; None if none was measured.
        left: the seconds left; None for no limit.
    """
    return left is None or fraction_left * step_seconds + (save or 0.0) * MARGIN <= left
