"""The one place that talks to signals.

A handler only sets a flag: saving inside one could meet a half-applied step or a held lock. The
loop asks between steps. The same signal a second time stops at once; a save in progress has then
written only a temporary file.
"""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

STOPPING = (signal.SIGINT, signal.SIGTERM)
TWICE = 1.0  # seconds in which a launcher may pass on to a rank what the rank was sent, too


class Interrupts:
    """While it is entered, SIGINT and SIGTERM ask for a stop and SIGUSR1 for a save.

    With several ranks, `largest` gives the largest of some numbers over all of them, and what one
    rank was asked for holds for all once they have agreed on it.
    """

    def __init__(self, largest: Callable[[list[int]], list[int]] | None = None) -> None:
        self.stop: signal.Signals | None = None
        self._largest = largest
        self._asked: tuple[signal.Signals, float] | None = None  # and when, by a steady clock
        self._save = False
        self._before: dict[int, object] = {}

    def agree(self) -> signal.Signals | None:
        """The signal that asked for a stop. A meeting of all ranks: call it on each alike."""
        if self._largest is not None:
            stop, save = self._largest([int(self._asked[0]) if self._asked else 0, int(self._save)])
            self.stop = signal.Signals(stop) if stop else None
            self._save = bool(save)
        return self.stop

    def take_save_request(self) -> bool:
        """Whether a save was asked for since the last call."""
        asked, self._save = self._save, False
        return asked

    def __enter__(self) -> "Interrupts":
        for number in (*STOPPING, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if received is signal.SIGUSR1:
            self._save = True
        elif self._asked is None or self._asked[0] is not received:
            self._asked = (received, time.monotonic())
            if self._largest is None:
                self.stop = received
        elif self._largest is None or time.monotonic() - self._asked[1] > TWICE:
            os._exit(exit_code(received))
        before = self._before.get(number)
        if callable(before) and before not in (signal.default_int_handler, exit_at_once):
            before(
                number, frame
            )  # a launcher's own, which may have to put the job back in its queue


def exit_at_once(number: int, frame: FrameType | None) -> None:
    """The handler for SIGTERM while there is nothing to save: before a training and after it."""
    raise SystemExit(128 + number)


def exit_code(received: signal.Signals) -> int:
    """What a shell reports for a process that this signal ended: 130 or 143."""
    return 128 + int(received)
