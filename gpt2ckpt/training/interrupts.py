"""The one place that talks to signals.

A handler only sets a flag: saving inside one could meet a half-applied step or a held lock. The
loop asks between steps. The same signal a second time stops at once; a save in progress has then
written only a temporary file.
"""

import os
import signal
from types import FrameType, TracebackType

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """While it is entered, SIGINT and SIGTERM ask for a stop and SIGUSR1 for a save."""

    def __init__(self) -> None:
        self.stop: signal.Signals | None = None
        self._save = False
        self._before: dict[int, object] = {}

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
        elif self.stop is received:
            os._exit(exit_code(received))
        else:
            self.stop = received
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
