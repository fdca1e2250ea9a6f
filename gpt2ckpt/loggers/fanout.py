"""All loggers of a run as one object. A logging error never ends the run."""

import logging
import time
from collections.abc import Callable

from gpt2ckpt.loggers.background import BackgroundLogger, reason
from gpt2ckpt.loggers.base import Logger, MetricRecord
from gpt2ckpt.loggers.metrics_file import MetricsFile

_log = logging.getLogger(__name__)


class Loggers:
    """Forwards events to the metrics file and to the loggers that were added.

    An added logger runs in a background thread: if the logger fails or hangs, a warning names it,
    and training continues without it. The metrics file is never disabled, because it is the history
    of the run. While it cannot be written, its lines are kept in memory, after one warning.

    Args:
        metrics: the metrics file; None on ranks that do not log.
    """

    def __init__(self, metrics: MetricsFile | None) -> None:
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
        """Open a logger in a background thread; see BackgroundLogger for the arguments."""
        self._others.append(BackgroundLogger(name, open_logger, progress))

    def log(self, event: MetricRecord) -> None:
        """Log one event to all loggers."""
        self._to_metrics(lambda metrics: metrics.log(event))
        for logger in self._others:
            logger.log(event)

    def text(self, step: int, text: str) -> None:
        """Log a text sample to all loggers except the metrics file."""
        for logger in self._others:
            logger.text(step, text)

    def flush(self) -> None:
        """Pass everything logged so far to the operating system."""
        self._to_metrics(MetricsFile.flush)
        for logger in self._others:
            logger.flush()

    def sync(self) -> None:
        """Wait until the metrics file is on the device, so that it is as durable as a checkpoint.

        The other loggers get a short time to process earlier events. Call this method in the thread
        that saves, because a disk that hangs must not block training.
        """
        try:
            if self._metrics is not None:
                self._metrics.sync()
        except (OSError, ValueError) as error:  # ValueError: the file is closed
            self._warn(error)
        for logger in self._others:
            logger.sync()

    def rewind(self, step: int, seconds: float) -> None:
        """Remove events after `step` from the metrics file, and close the other loggers.

        Wait at most `seconds` for all loggers together. Never raises.
        """
        self._close_others(seconds)
        self._others = []
        self._to_metrics(lambda metrics: metrics.rewind(step))

    def close(self, seconds: float) -> None:
        """Flush and close all loggers. Wait at most `seconds` for all of them together.

        Never raises. A second call does nothing.
        """
        if self._closed:
            return
        self._closed = True
        self._to_metrics(MetricsFile.flush)
        self._to_metrics(MetricsFile.close)
        self._close_others(seconds)

    def _close_others(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        for logger in self._others:
            logger.close(max(0.0, end - time.monotonic()))

    def _to_metrics(self, action: Callable[[MetricsFile], None]) -> None:
        try:
            if self._metrics is not None:
                action(self._metrics)
        except OSError as error:
            self._warn(error)
        else:
            self._metrics_failing = False

    def _warn(self, error: Exception) -> None:
        if not self._metrics_failing:
            message = (
                "metrics.jsonl cannot be written for now: %s. Training continues. Free disk space "
                "or repair the file system of the run"
            )
            _log.warning(message, reason(error))
        self._metrics_failing = True
