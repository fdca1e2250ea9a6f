"""Runs a logger in a background thread, so that training never waits for the logger."""

import contextlib
import logging
import time
from collections.abc import Callable

import psutil

from gpt2ckpt.exits import skip_exit_hooks
from gpt2ckpt.loggers.base import Logger, MetricRecord
from gpt2ckpt.units import plural
from gpt2ckpt.worker import Worker

_log = logging.getLogger(__name__)

LIMIT = 10_000  # queued events
SAVE_WAITS = 2.0  # seconds that a save waits until a logger has processed earlier events
WARNING = 30.0  # seconds without progress after which a warning is logged
SILENCE = 5.0  # seconds without progress after which `close` abandons a logger
NOTICE = 2.0  # seconds after which `close` reports that it waits
POLL = 0.2  # seconds between two checks for progress


class BackgroundLogger:
    """Opens a logger and forwards events to it in a background thread.

    A logger that raises is disabled with one warning. If a logger hangs and the queue is full,
    events are dropped, and a warning at the end reports how many.

    Args:
        name: the name of the logger in warnings ("TensorBoard").
        open_logger: creates the logger.
        progress: returns a value that changes while a helper process of the logger makes progress.
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
        self._submitted = self._processed = 0  # events and samples
        self._worker = Worker(f"logger-{name}", LIMIT)
        self._worker.submit(lambda: self._open(open_logger))

    def log(self, event: MetricRecord) -> None:
        """Forward one event."""
        self._submit(lambda logger: logger.log(event))

    def text(self, step: int, text: str) -> None:
        """Forward a text sample."""
        self._submit(lambda logger: logger.text(step, text))

    def flush(self) -> None:
        """Request a flush after the events forwarded so far, without waiting for it."""
        self._worker.submit(lambda: self._run(lambda logger: logger.flush()))

    def sync(self) -> None:
        """Wait up to SAVE_WAITS until the events forwarded so far are processed."""
        if not self._is_off:
            self._worker.wait(SAVE_WAITS, silence=SAVE_WAITS)

    def close(self, seconds: float) -> None:
        """Close the logger. Wait at most `seconds`, and at most SILENCE without progress.

        A logger that has not ended by then is abandoned, and the exit hooks of all libraries are
        skipped, since those of its library would hang.
        """
        self._worker.submit(lambda: self._run(lambda logger: logger.close()))
        self._worker.close()
        has_ended = self._wait(seconds)
        missing = 0 if self._is_off else self._submitted - self._processed
        self._is_off = True
        if not has_ended:
            skip_exit_hooks()
            _log.warning(
                "%s does not respond and was abandoned, %s dropped; metrics.jsonl has all events",
                self._name,
                plural(missing, "event"),
            )
        elif missing:
            _log.warning(
                "%s was too slow, %s dropped; metrics.jsonl has all events",
                self._name,
                plural(missing, "event"),
            )

    def _wait(self, seconds: float) -> bool:
        """Wait while the thread or its helper process makes progress; return whether it ended."""
        start, is_reported, before = time.monotonic(), False, self._work_done()
        while not self._worker.join(POLL):
            waited, now = time.monotonic() - start, self._work_done()
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
        """Return a value that changes while the thread or its helper process works."""
        seconds = 0.0
        with contextlib.suppress(psutil.Error, OSError):
            threads = psutil.Process().threads()
            own = [thread for thread in threads if thread.id == self._worker.native_id]
            seconds = sum(thread.user_time + thread.system_time for thread in own)
        return seconds + self._progress()

    def _submit(self, action: Callable[[Logger], None]) -> None:
        self._submitted += 1
        is_queued = self._worker.submit(lambda: self._process(action))
        silence = self._worker.silence
        if self._is_off or self._is_behind or (is_queued and silence < WARNING):
            return
        self._is_behind = True
        _log.warning(
            "%s has not responded for %.0f s: training continues; metrics.jsonl has all events",
            self._name,
            silence,
        )

    def _process(self, action: Callable[[Logger], None]) -> None:
        self._run(action)
        self._processed += 1
        self._is_behind = False

    def _open(self, open_logger: Callable[[], Logger]) -> None:
        try:
            self._logger = open_logger()
        except BaseException as error:  # including SystemExit, which would end only this thread
            self._is_off = True
            _log.warning("%s is disabled in this run: %s", self._name, reason(error))

    def _run(self, action: Callable[[Logger], None]) -> None:
        if self._is_off or self._logger is None:
            return
        try:
            action(self._logger)
        except BaseException as error:
            self._is_off = True
            message = "%s failed and is disabled from now on: %s"
            _log.warning(message, self._name, reason(error))


def reason(error: BaseException) -> str:
    """Return the first line of an error message, or the type of an error without a message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
