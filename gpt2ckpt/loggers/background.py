"""A logger in a thread of its own: whatever it waits for, the training does not."""

import contextlib
import logging
import time
from collections.abc import Callable

import psutil

from gpt2ckpt.exits import skip_exit_hooks
from gpt2ckpt.loggers.base import Logger, MetricRecord
from gpt2ckpt.worker import Worker

_log = logging.getLogger(__name__)

LIMIT = 10_000  # events that wait for a logger
SAVE_WAITS = 2.0  # seconds that a save waits for a logger to take the events before it
WARNING = 30.0  # seconds without progress after which the user is told
SILENCE = 5.0  # seconds without progress after which a logger is given up at the end
NOTICE = 2.0  # seconds of waiting at the end after which that is reported
POLL = 0.2  # seconds between two looks at its progress


class BackgroundLogger:
    """Opens a logger and passes everything on to it, in a thread; no caller ever waits long.

    A logger that raises is named in one warning and is off from then on. One that hangs takes
    nothing more: what finds the queue full is left out, and counted in a warning at the end.

    Args:
        name: what a warning calls it ("TensorBoard").
        open_logger: makes the logger.
        progress: gives a value that changes as long as a process makes progress that does the work
            of the logger.
    """

    def __init__(
        self,
        name: str,
        open_logger: Callable[[], Logger],
        progress: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._name, self._progress = name, progress
        self._logger: Logger | None = None
        self._is_off = self._is_behind = False
        self._given = self._taken = 0  # events and samples
        self._worker = Worker(f"logger-{name}", LIMIT)
        self._worker.hand_over(lambda: self._open(open_logger))

    def log(self, event: MetricRecord) -> None:
        """Hand over one event."""
        self._hand_over(lambda logger: logger.log(event))

    def text(self, step: int, text: str) -> None:
        """Hand over a text sample."""
        self._hand_over(lambda logger: logger.text(step, text))

    def flush(self) -> None:
        """Have everything handed over so far flushed, soon."""
        self._worker.hand_over(lambda: self._run(lambda logger: logger.flush()))

    def sync(self) -> None:
        """Wait a short time until everything handed over so far is taken."""
        if not self._is_off:
            self._worker.wait(SAVE_WAITS, silence=SAVE_WAITS)

    def close(self, seconds: float) -> None:
        """Close the logger, and wait for it at most `seconds`, less if it makes no progress.

        Then it is left behind, and the exit hooks of its library too, since they would hang.
        """
        self._worker.hand_over(lambda: self._run(lambda logger: logger.close()))
        self._worker.close()
        has_ended = self._wait(seconds)
        missing = 0 if self._is_off else self._given - self._taken
        self._is_off = True
        if not has_ended:
            skip_exit_hooks()
            _log.warning(
                "%s hangs and is left behind: %d events are missing there, metrics.jsonl has all",
                self._name,
                missing,
            )
        elif missing:
            _log.warning(
                "%s did not keep up: %d events are missing there, metrics.jsonl has all",
                self._name,
                missing,
            )

    def _wait(self, seconds: float) -> bool:
        """Return whether the thread has ended; wait while it, or what works for it, does work."""
        begun, is_reported, before = time.monotonic(), False, self._work_done()
        while not self._worker.has_ended(POLL):
            waited, now = time.monotonic() - begun, self._work_done()
            if now != before:
                before = now
                self._worker.beat()
            if waited > seconds or self._worker.silence > SILENCE:
                return False
            if waited > NOTICE and not is_reported:
                is_reported = True
                _log.info("waiting for %s, at most %.0f s", self._name, seconds)
        return True

    def _work_done(self) -> float:
        """Return a value that changes as long as the thread, or what works for it, does work."""
        seconds = 0.0
        with contextlib.suppress(psutil.Error, OSError):
            threads = psutil.Process().threads()
            own = [thread for thread in threads if thread.id == self._worker.native_id]
            seconds = sum(thread.user_time + thread.system_time for thread in own)
        return seconds + self._progress()

    def _hand_over(self, action: Callable[[Logger], None]) -> None:
        self._given += 1
        is_taken = self._worker.hand_over(lambda: self._take(action))
        silence = self._worker.silence
        if self._is_off or self._is_behind or (is_taken and silence < WARNING):
            return
        self._is_behind = True
        _log.warning(
            "%s has taken nothing for %.0f s: training does not wait for it, metrics.jsonl has all",
            self._name,
            silence,
        )

    def _take(self, action: Callable[[Logger], None]) -> None:
        self._run(action)
        self._taken += 1
        self._is_behind = False

    def _open(self, open_logger: Callable[[], Logger]) -> None:
        try:
            self._logger = open_logger()
        except BaseException as error:  # in this thread, SystemExit is a failure like any other
            self._is_off = True
            _log.warning("%s is off in this run: %s", self._name, reason(error))

    def _run(self, action: Callable[[Logger], None]) -> None:
        if self._is_off or self._logger is None:
            return
        try:
            action(self._logger)
        except BaseException as error:
            self._is_off = True
            message = "%s failed and is off from here on: %s"
            _log.warning(message, self._name, reason(error))


def reason(error: BaseException) -> str:
    """Return the first line of what went wrong, or the kind of error where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
