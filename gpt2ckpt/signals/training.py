"""The one place that talks to signals while a training runs.

A handler only sets a flag: saving inside one could meet a half-applied step or a held lock. The
loop asks between steps. The same signal a second time stops at once; a save in progress has then
written only a temporary file. Before and after a training: gpt2ckpt/signals/early.py.

Python runs a handler between two lines of the main thread, and one line may take minutes. So a
thread, which the C library's side of a signal wakes, answers the user at once and keeps time.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType

from gpt2ckpt import console
from gpt2ckpt.signals.early import (
    STOPPING,
    EarlySignals,
    Handler,
    call_previous,
    exit_code,
    exit_now,
    install,
)

COPIES_WITHIN = 1.0  # seconds in which a launcher may pass on to a rank what the rank was sent, too


@dataclass
class StopRequests:
    """Tells the first signal that asks for a stop from one that asks again.

    Args:
        copies_within: seconds in which the same signal counts as a launcher's copy of it.
    """

    copies_within: float
    asked: tuple[signal.Signals, float] | None = None  # and when, by time.monotonic()

    def take(self, received: signal.Signals) -> bool | None:
        """Take a signal. Returns whether it asks again; None for a copy."""
        now = time.monotonic()
        if self.asked is None or self.asked[0] is not received:
            self.asked = (received, now)
            return False
        return None if now - self.asked[1] < self.copies_within else True


class TrainingSignals:
    """While it is entered, SIGINT, SIGTERM and SIGHUP ask for a stop and SIGUSR1 for a save.

    With several ranks, `all_reduce_max` returns the element-wise maximum over all ranks, so that a
    request to one rank holds for all ranks once they have agreed. A rank for which `is_orphan`
    returns true counts as one that received SIGTERM.
    """

    def __init__(
        self,
        all_reduce_max: Callable[[list[int]], list[int]] | None = None,
        is_orphan: Callable[[], bool] = lambda: False,
    ) -> None:
        self.stop: signal.Signals | None = None
        self.exits_immediately = False  # nothing has been trained that a stop could lose
        self.newest_checkpoint_message: Callable[[], str] | None = (
            None  # what there is to resume from
        )
        self._largest = all_reduce_max
        self._is_orphan = is_orphan
        self._stop_requests = self.new_stop_requests()
        self._save = False
        self._before: dict[int, Handler] = {}
        self._received: list[tuple[int, FrameType | None]] = []

    def new_stop_requests(self) -> StopRequests:
        """Return the rule for repeated signals, nothing received yet."""
        return StopRequests(COPIES_WITHIN if self._largest is not None else 0.0)

    @property
    def stop_requested(self) -> bool:
        """Whether this process was sent a signal that asks for a stop."""
        return self._stop_requests.asked is not None

    @property
    def stop_requested_at(self) -> float | None:
        """When this process was asked to stop, by time.monotonic()."""
        return self._stop_requests.asked[1] if self._stop_requests.asked else None

    def agree(self) -> signal.Signals | None:
        """The signal that asked for a stop. A meeting of all ranks: call it on each alike."""
        if self._largest is not None:
            if self._stop_requests.asked is None and self._is_orphan():
                self._stop_requests.take(signal.SIGTERM)
            asked = self._stop_requests.asked
            stop, save = self._largest([int(asked[0]) if asked else 0, int(self._save)])
            self.stop = signal.Signals(stop) if stop else None
            self._save = bool(save)
        return self.stop

    def take_save_request(self) -> bool:
        """Whether a save was asked for since the last call."""
        asked, self._save = self._save, False
        return asked

    def call_previous_handlers(self) -> None:
        """Tell the handlers that were there before: call it when what they end is saved.

        A launcher's own may put the job back into its queue and end the process.
        """
        received, self._received = self._received, []
        for number, frame in received:
            before = self._before.get(number)
            if isinstance(before, EarlySignals):
                before = before.before.get(number)
            call_previous(before, number, frame)

    def leave(self, received: signal.Signals, why: str) -> None:
        """End the process now, and name what there is to resume from; other ranks are silent."""
        words = ""
        if self.newest_checkpoint_message is not None:
            with contextlib.suppress(Exception):  # the end must not depend on what there is to say
                words = f"{received.name}{why}. {self.newest_checkpoint_message()}"
        exit_now(exit_code(received), words)

    def __enter__(self) -> "TrainingSignals":
        with contextlib.suppress(ValueError):  # in a thread: signals are not ours to handle
            install(self._handle, self._before)
        early = self._before.get(signal.SIGUSR1)
        if isinstance(early, EarlySignals):
            self._save = early.take_save_request()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.call_previous_handlers()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if received is signal.SIGUSR1:
            self._save = True
        elif self.exits_immediately:
            self._received.append((number, frame))
            try:
                self.call_previous_handlers()
            finally:
                exit_now(exit_code(received), "interrupted: there was nothing to save")
        elif self._stop_requests.take(received):
            self.leave(received, " again: stopped without saving")
        elif self._largest is None:
            self.stop = received
        self._received.append((number, frame))


class Watchdog:
    """While it is entered, answers the stopping signals that `signals` handles, in a thread.

    It acknowledges the first one, ends the process at the same signal again, and `grace` seconds
    after the first. Outside the main thread it does nothing.

    Args:
        signals: the handlers.
        grace: seconds that a stop may take; None is no limit.
        acknowledgement: gives what to print at a first signal; None prints nothing.
    """

    def __init__(
        self,
        signals: TrainingSignals,
        grace: float | None,
        acknowledgement: Callable[[signal.Signals], str] | None = None,
    ) -> None:
        self._signals, self._grace, self._acknowledgement = signals, grace, acknowledgement
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._read = self._write = -1
        self._before = -1

    def __enter__(self) -> "Watchdog":
        if threading.current_thread() is threading.main_thread():
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
        presses, end, poll = self._signals.new_stop_requests(), None, select.poll()
        poll.register(self._read, select.POLLIN)
        while True:
            left = None if end is None else max(0.0, end - time.monotonic()) * 1000
            is_over = not poll.poll(left)
            number = 0 if is_over else os.read(self._read, 1)[0]
            if self._has_ended.is_set():
                return
            if is_over and presses.asked:
                self._signals.leave(presses.asked[0], f": the {self._grace:g} s are over")
            if number not in STOPPING or self._signals.exits_immediately:
                continue
            received = signal.Signals(number)
            is_repeated = presses.take(received)
            if is_repeated:
                self._signals.leave(received, " again: stopped without saving")
            elif is_repeated is False:
                self._acknowledge(received)
                if end is None and self._grace is not None:
                    end = time.monotonic() + self._grace

    def _acknowledge(self, received: signal.Signals) -> None:
        if self._acknowledgement is not None:
            console.print_nowait(f"{received.name}: {self._acknowledgement(received)}")
