"""Handles signals during training: the handlers set flags, which the training loop reads.

A handler does not save, because it may interrupt a half-applied step or code that holds a lock. The
training loop saves and stops between two steps. When the same signal is repeated, the process ends
at once; an unfinished save leaves only a temporary file.

Python runs a handler between two bytecode instructions of the main thread, and one instruction may
run a kernel for minutes. `Watchdog` therefore starts a thread, which the C-level handler wakes up
at once. The thread acknowledges the signal and enforces the grace period.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

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

COPIES_WITHIN = 1.0  # seconds in which a launcher relays a signal that its ranks received too


@dataclass
class StopRequests:
    """Distinguishes the first stopping signal from repetitions of the same signal.

    Args:
        copies_within: seconds in which a repetition counts as a copy that a launcher relays.
        asked: the last new signal, and the time.monotonic() at which it was received.
    """

    copies_within: float
    asked: tuple[signal.Signals, float] | None = None

    def take(self, received: signal.Signals) -> bool | None:
        """Record a signal; return whether it is repeated, or None for a copy from a launcher."""
        now = time.monotonic()
        if self.asked is None or self.asked[0] is not received:
            self.asked = (received, now)
            return False
        return None if now - self.asked[1] < self.copies_within else True


class TrainingSignals:
    """Context that installs handlers: SIGINT, SIGTERM and SIGHUP request a stop, SIGUSR1 a save.

    Args:
        all_reduce_max: with several ranks, returns the element-wise maximum over all ranks.
            `agree` uses it to tell all ranks about a request to one rank.
        is_orphan: returns whether the launcher of this rank has died, which counts as SIGTERM.

    Attributes:
        stop: the signal that requested a stop; with several ranks, the result of `agree`.
        ends_early: whether training was asked to end as if this was its last step; with several
            ranks, the result of `agree`.
        exits_immediately: whether a stopping signal ends the process at once, because no step has
            been trained yet.
        newest_checkpoint_message: returns what is printed about the newest checkpoint.
        ends_process: whether a repeated signal and the end of the grace period end the process.
    """

    ends_process = True

    def __init__(
        self,
        all_reduce_max: Callable[[list[int]], list[int]] | None = None,
        is_orphan: Callable[[], bool] = lambda: False,
    ) -> None:
        self.stop: signal.Signals | None = None
        self.ends_early = False
        self.exits_immediately = False
        self.newest_checkpoint_message: Callable[[], str] | None = None
        self._all_reduce_max = all_reduce_max
        self._is_orphan = is_orphan
        self._stop_requests = self.new_stop_requests()
        self._save = self._end = False
        self._before: dict[int, Handler] = {}
        self._received: list[tuple[int, FrameType | None]] = []

    def new_stop_requests(self) -> StopRequests:
        """Return a new StopRequests, which has received no signal."""
        return StopRequests(COPIES_WITHIN if self._all_reduce_max is not None else 0.0)

    @property
    def stop_requested(self) -> bool:
        """Whether this process received a stopping signal."""
        return self._stop_requests.asked is not None

    @property
    def stop_requested_at(self) -> float | None:
        """The time.monotonic() of the stopping signal that this process received, if any."""
        return self._stop_requests.asked[1] if self._stop_requests.asked else None

    def request_end(self, requested: bool) -> None:
        """Request an early end of training, or withdraw the request; `agree` applies it."""
        self._end = requested

    def agree(self) -> signal.Signals | None:
        """Return the signal that requested a stop on any rank. All ranks must call this method."""
        if self._all_reduce_max is None:
            self.ends_early = self._end
            return self.stop
        if self._stop_requests.asked is None and self._is_orphan():
            self._stop_requests.take(signal.SIGTERM)
        asked = self._stop_requests.asked
        numbers = [int(asked[0]) if asked else 0, int(self._save), int(self._end)]
        stop, save, end = self._all_reduce_max(numbers)
        self.stop = signal.Signals(stop) if stop else None
        self._save, self.ends_early = bool(save), bool(end)
        return self.stop

    def take_save_request(self) -> bool:
        """Return whether a save was requested since the last call."""
        requested, self._save = self._save, False
        return requested

    def call_previous_handlers(self) -> None:
        """Call the replaced handlers for each received signal. Call this method after the save.

        A replaced handler, such as that of a launcher, may requeue the job and end the process.
        """
        received, self._received = self._received, []
        for number, frame in received:
            before = self._before.get(number)
            if isinstance(before, EarlySignals):
                before = before.before.get(number)
            call_previous(before, number, frame)

    def leave(self, received: signal.Signals, why: str) -> None:
        """End the process at once; the first rank prints the reason and the newest checkpoint."""
        message = ""
        if self.newest_checkpoint_message is not None:
            with contextlib.suppress(Exception):  # the process must end in any case
                message = f"{received.name}{why}. {self.newest_checkpoint_message()}"
        exit_now(exit_code(received), message)

    def __enter__(self) -> "TrainingSignals":
        with contextlib.suppress(ValueError):  # only the main thread can install handlers
            self._install()
        early = self._before.get(signal.SIGUSR1)
        if isinstance(early, EarlySignals):
            self._save = early.take_save_request()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self.newest_checkpoint_message = None  # it keeps the model in memory
        self.call_previous_handlers()

    def _install(self) -> None:
        install(self._handle, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if received is signal.SIGUSR1:
            self._save = True
        elif self.exits_immediately:
            self._received.append((number, frame))
            self._leave_unsaved(received)
        elif self._stop_requests.take(received):
            self.leave(received, " received again: stopped without saving")
        elif self._all_reduce_max is None:
            self.stop = received
        self._received.append((number, frame))

    def _leave_unsaved(self, received: signal.Signals) -> None:
        """End the process before its first step, after the replaced handlers."""
        try:
            self.call_previous_handlers()
        finally:
            exit_now(exit_code(received), "interrupted: there was nothing to save")


class Watchdog:
    """Context in which a thread acknowledges stopping signals and enforces the grace period.

    The thread ends the process when a signal is repeated or the grace period is over. Outside the
    main thread, the context has no effect.

    Args:
        signals: the handlers of the stopping signals.
        grace: seconds that a stop may take; None for no limit.
        acknowledgement: returns what is printed at the first signal; None to print nothing.
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

    def __exit__(self, *error: object) -> None:
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
        requests, end, poll = self._signals.new_stop_requests(), None, select.poll()
        poll.register(self._read, select.POLLIN)
        while True:
            left = None if end is None else max(0.0, end - time.monotonic()) * 1000
            is_over = not poll.poll(left)
            number = 0 if is_over else os.read(self._read, 1)[0]
            if self._has_ended.is_set():
                return
            if is_over and requests.asked:
                self._signals.leave(
                    requests.asked[0], f": the grace period of {self._grace:g} s is over"
                )
            if number not in STOPPING and self._before >= 0:
                with contextlib.suppress(OSError):  # an event loop of the host waits for it
                    os.write(self._before, bytes([number]))
            if number not in STOPPING or self._signals.exits_immediately:
                continue
            received = signal.Signals(number)
            is_repeated = requests.take(received)
            if is_repeated and self._signals.ends_process:
                self._signals.leave(received, " received again: stopped without saving")
            elif is_repeated is False:
                self._acknowledge(received)
                if end is None and self._grace is not None and self._signals.ends_process:
                    end = time.monotonic() + self._grace

    def _acknowledge(self, received: signal.Signals) -> None:
        if self._acknowledgement is not None:
            console.print_nowait(f"{received.name}: {self._acknowledgement(received)}")
