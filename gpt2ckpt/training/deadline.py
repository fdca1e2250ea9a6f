"""A stop with a time limit, as schedulers give one: what still fits into it, and its end.

The end is kept by a thread, which the C library's side of the signal wakes: it counts from the
signal itself, even where the main thread is deep in a computation and no Python handler runs.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from gpt2ckpt.standby import STOPPING, end_now, exit_code

MARGIN = 1.2  # a save may take so many times as long as the last ones did


class Abandoned(Exception):
    """A step that would not have ended in time; the state is the one before it."""


@dataclass
class Deadline:
    """What is left of `grace` seconds since a stop was asked for; None of either is no limit.

    `asked_at` gives the moment of the signal by time.monotonic().
    """

    grace: float | None
    asked_at: Callable[[], float | None]
    step_seconds: float = 0.0  # that the last step took

    def left(self) -> float | None:
        """Seconds, below 0 when it is over; None as long as there is no end."""
        asked_at = self.asked_at()
        if self.grace is None or asked_at is None:
            return None
        return self.grace - (time.monotonic() - asked_at)


def fits(seconds: float | None, left: float | None) -> bool:
    """Whether what takes about `seconds` can be begun; what nobody has measured is tried."""
    return left is None or seconds is None or seconds * MARGIN <= left


def step_fits(
    share_left: float, step_seconds: float, save: float | None, left: float | None
) -> bool:
    """Whether the rest of a step and a save of about `save` seconds after it end in time.

    A step that cannot be saved in any case is worth nothing; then too it is given up, since the
    state before it may fit.
    """
    return left is None or share_left * step_seconds + (save or 0.0) * MARGIN <= left


class Watchdog:
    """While it is entered, ends the process `grace` seconds after the first stopping signal.

    `last_words` is asked then, in a thread of its own, for what to tell the user. Without `grace`,
    or outside the main thread, it does nothing.
    """

    def __init__(self, grace: float | None, last_words: Callable[[], str]) -> None:
        self._grace, self._last_words = grace, last_words
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="deadline", daemon=True)
        self._read = self._write = -1
        self._before = -1

    def __enter__(self) -> "Watchdog":
        if self._grace is not None and threading.current_thread() is threading.main_thread():
            self._read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._write < 0:
            return
        signal.set_wakeup_fd(self._before)
        self._has_ended.set()
        with contextlib.suppress(OSError):
            os.write(self._write, b"\0")
        self._thread.join()
        os.close(self._read)
        os.close(self._write)
        self._write = -1

    def _watch(self) -> None:
        number = 0
        while number not in STOPPING:
            number = os.read(self._read, 1)[0]
            if self._has_ended.is_set():
                return
        if not self._has_ended.wait(self._grace):
            name = signal.Signals(number).name
            end_now(exit_code(number), f"{name}: the {self._grace:g} s are over. {self._words()}")

    def _words(self) -> str:
        try:
            return self._last_words()
        except Exception:
            return ""  # the end must not depend on what there is to say
