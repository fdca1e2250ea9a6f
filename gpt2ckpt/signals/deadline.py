"""A stop with a time limit, as schedulers give one: what still fits into it.

Its end is kept by `Watchdog` in training.py.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

MARGIN = 1.2  # a save may take so many times as long as the last ones did


class StepAbandoned(Exception):
    """A step that would not have ended in time; the state is the one before it."""


@dataclass
class Deadline:
    """What is left of `grace` seconds since a stop was asked for; None of either is no limit.

    `stop_requested_at` gives the moment of the signal by time.monotonic().
    """

    grace: float | None
    stop_requested_at: Callable[[], float | None]
    step_seconds: float = 0.0  # that the last step took

    def left(self) -> float | None:
        """Seconds, below 0 when it is over; None as long as there is no end."""
        stop_requested_at = self.stop_requested_at()
        if self.grace is None or stop_requested_at is None:
            return None
        return self.grace - (time.monotonic() - stop_requested_at)


def save_fits(seconds: float | None, left: float | None) -> bool:
    """Whether what takes about `seconds` can be begun; what nobody has measured is tried."""
    return left is None or seconds is None or seconds * MARGIN <= left


def step_fits(
    fraction_left: float, step_seconds: float, save: float | None, left: float | None
) -> bool:
    """Whether the rest of a step and a save of about `save` seconds after it end in time.

    A step that cannot be saved in any case is worth nothing; then too it is given up, since the
    state before it may fit.
    """
    return left is None or fraction_left * step_seconds + (save or 0.0) * MARGIN <= left
