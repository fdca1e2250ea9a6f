"""The grace period after a signal: which step and which save still fit into it.

Schedulers kill a process some time after they signal it. `Watchdog` in training.py ends the process
at the end of the grace period.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

MARGIN = 1.2  # a save may take this many times as long as the last saves took


class StepAbandoned(Exception):
    """Raised for a step that would not end in time; the state is the one before the step."""


@dataclass
class Deadline:
    """The time that is left after a stop was requested.

    Args:
        grace: seconds from the signal to the end of the process; None for no limit.
        stop_requested_at: returns the time.monotonic() of the signal; None if there was none.
        step_seconds: how long the last step took.
    """

    grace: float | None
    stop_requested_at: Callable[[], float | None]
    step_seconds: float = 0.0

    def left(self) -> float | None:
        """Return the seconds left, negative after the deadline; None while there is none."""
        stop_requested_at = self.stop_requested_at()
        if self.grace is None or stop_requested_at is None:
            return None
        return self.grace - (time.monotonic() - stop_requested_at)


def save_fits(seconds: float | None, left: float | None) -> bool:
    """Return whether a save of about `seconds` ends in time; an unmeasured save counts as fitting.

    `left` is the time that is left; None for no limit.
    """
    return left is None or seconds is None or seconds * MARGIN <= left


def step_fits(
    fraction_left: float, step_seconds: float, save: float | None, left: float | None
) -> bool:
    """Return whether the rest of a step and a save of about `save` seconds end in time.

    A step is not worth finishing if its state cannot be saved: the state before it may still fit.
    """
    return left is None or fraction_left * step_seconds + (save or 0.0) * MARGIN <= left
