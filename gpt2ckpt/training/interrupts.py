"""The one place that talks to signals while a training runs.

A handler only sets a flag: saving inside one could meet a half-applied step or a held lock. The
loop asks between steps. The same signal a second time stops at once; a save in progress has then
written only a temporary file. Before and after a training: gpt2ckpt/standby.py.
"""

import contextlib
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from gpt2ckpt.standby import StandBy, end_now, exit_code, install, pass_on

TWICE = 1.0  # seconds in which a launcher may pass on to a rank what the rank was sent, too


class Interrupts:
    """While it is entered, SIGINT, SIGTERM and SIGHUP ask for a stop and SIGUSR1 for a save.

    With several ranks, `largest` gives the largest of some numbers over all of them, and what one
    rank was asked for holds for all once they have agreed on it. A rank for which `is_orphan`
    holds counts as one that was sent SIGTERM.
    """

    def __init__(
        self,
        largest: Callable[[list[int]], list[int]] | None = None,
        is_orphan: Callable[[], bool] = lambda: False,
    ) -> None:
        self.stop: signal.Signals | None = None
        self.leaves_at_once = False  # nothing has been trained that a stop could lose
        self._largest = largest
        self._is_orphan = is_orphan
        self._asked: tuple[signal.Signals, float] | None = None  # and when, by a steady clock
        self._save = False
        self._before: dict[int, object] = {}
        self._received: list[tuple[int, FrameType | None]] = []

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether this process was sent a signal that asks for a stop."""
        return self._asked is not None

    @property
    def asked_at(self) -> float | None:
        """When this process was asked to stop, by time.monotonic()."""
        return self._asked[1] if self._asked else None

    def agree(self) -> signal.Signals | None:
        """The signal that asked for a stop. A meeting of all ranks: call it on each alike."""
        if self._largest is not None:
            if self._asked is None and self._is_orphan():
                self._asked = (signal.SIGTERM, time.monotonic())
            stop, save = self._largest([int(self._asked[0]) if self._asked else 0, int(self._save)])
            self.stop = signal.Signals(stop) if stop else None
            self._save = bool(save)
        return self.stop

    def take_save_request(self) -> bool:
        """Whether a save was asked for since the last call."""
        asked, self._save = self._save, False
        return asked

    def pass_on(self) -> None:
        """Tell the handlers that were there before: call it when what they end is saved.

        A launcher's own may put the job back into its queue and end the process.
        """
        received, self._received = self._received, []
        for number, frame in received:
            before = self._before.get(number)
            if isinstance(before, StandBy):
                before = before.before.get(number)
            pass_on(before, number, frame)

    def __enter__(self) -> "Interrupts":
        with contextlib.suppress(ValueError):  # in a thread: signals are not ours to handle
            install(self._handle, self._before)
        early = self._before.get(signal.SIGUSR1)
        if isinstance(early, StandBy):
            self._save = early.take_save_request()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self.pass_on()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if received is signal.SIGUSR1:
            self._save = True
        elif self.leaves_at_once:
            self._received.append((number, frame))
            try:
                self.pass_on()
            finally:
                end_now(exit_code(received), "interrupted: there was nothing to save")
        elif self._asked is None or self._asked[0] is not received:
            self._asked = (received, time.monotonic())
            if self._largest is None:
                self.stop = received
        elif self._largest is None or time.monotonic() - self._asked[1] > TWICE:
            end_now(exit_code(received))
        self._received.append((number, frame))
