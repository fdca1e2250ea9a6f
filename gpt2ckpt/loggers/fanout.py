"""All loggers of a run as one. Logging never ends a training."""

import logging
import time
from collections.abc import Callable

from gpt2ckpt.loggers.background import BackgroundLogger, reason
from gpt2ckpt.loggers.base import Logger, MetricRecord, NullLogger
from gpt2ckpt.loggers.metrics_file import MetricsFile

_log = logging.getLogger(__name__)


class Loggers:
    """Passes everything on to the metrics file and to the loggers that were added.

    An added logger has a thread of its own: if it fails or hangs, a warning names it, and the
    training does without. The metrics file is never given up: it is the run's history, keeps what
    it could not write, and warns once per episode of failures.

    Args:
        metrics: always written, but for a rank that logs nowhere.
    """

    def __init__(self, metrics: MetricsFile | NullLogger) -> None:
        self._metrics = metrics
        self._metrics_failing = False
        self._closed = False
        self._others: list[BackgroundLogger] = []

    def add(
        self,
        name: str,
        open_logger: Callable[[], Logger],
        progress: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Open a logger, in its thread, and use it from now on; see BackgroundLogger."""
        self._others.append(BackgroundLogger(name, open_logger, progress))

    def log(self, event: MetricRecord) -> None:
        """Log one event everywhere."""
        self._to_metrics(lambda: self._metrics.log(event))
        for logger in self._others:
            logger.log(event)

    def text(self, step: int, text: str) -> None:
        """Log a text sample wherever samples are shown."""
        for logger in self._others:
            logger.text(step, text)

    def flush(self) -> None:
        """Hand everything to the operating system; called at each save."""
        self._to_metrics(self._metrics.flush)
        for logger in self._others:
            logger.flush()

    def sync(self) -> None:
        """Wait until the history is on the device: what led to a checkpoint is as safe as that.

        The other loggers get a short time to take it, too. For the thread that saves: a disk that
        hangs must not hold the training.
        """
        try:
            self._metrics.sync()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._warn(error)
        for logger in self._others:
            logger.sync()

    def reopen(self, step: int, seconds: float) -> "Loggers":
        """Close all but the metrics file, as `close` does, and take its events after `step` back.

        Nothing is raised. Returns loggers with the metrics file alone, for others to be added.
        """
        self._closed = True
        self._close_others(seconds)
        self._to_metrics(lambda: self._metrics.rewind(step))
        return Loggers(self._metrics)

    def close(self, seconds: float) -> None:
        """Flush and close everything, and wait for slow loggers so long at most.

        Nothing is raised, and a second call does nothing.
        """
        if self._closed:
            return
        self._closed = True
        self._to_metrics(self._metrics.flush)
        self._to_metrics(self._metrics.close)
        self._close_others(seconds)

    def _close_others(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        for logger in self._others:
            logger.close(max(0.0, end - time.monotonic()))

    def _to_metrics(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            self._warn(error)
        else:
            self._metrics_failing = False

    def _warn(self, error: Exception) -> None:
        if not self._metrics_failing:
            message = "metrics.jsonl cannot be written for now, training goes on: %s"
            _log.warning(message, reason(error))
        self._metrics_failing = True
