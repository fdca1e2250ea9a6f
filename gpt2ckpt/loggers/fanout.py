"""All loggers of a run as one. Logging never ends a training."""

import logging
from collections.abc import Callable

from gpt2ckpt.loggers.event import Event, Logger, Nowhere
from gpt2ckpt.loggers.metrics_file import MetricsFile

_log = logging.getLogger(__name__)


class Loggers:
    """Passes everything on to the metrics file and to the loggers that were added.

    A logger that fails is named in one warning and dropped. The metrics file is never dropped: it
    is the run's history, keeps what it could not write, and warns once per episode of failures.

    Args:
        metrics: always written, but for a rank that logs nowhere.
    """

    def __init__(self, metrics: MetricsFile | Nowhere) -> None:
        self._metrics = metrics
        self._metrics_failing = False
        self._closed = False
        self._others: dict[str, Logger] = {}

    def add(self, name: str, open_logger: Callable[[], Logger]) -> None:
        """Open a logger and use it from now on; if it cannot be opened, warn and go without.

        Args:
            name: what a warning calls it ("TensorBoard").
            open_logger: makes the logger; whatever it raises is caught.
        """
        try:
            self._others[name] = open_logger()
        except Exception as error:
            _log.warning("%s is off in this run: %s", name, _reason(error))

    def log(self, event: Event) -> None:
        """Log one event everywhere."""
        self._to_metrics(lambda: self._metrics.log(event))
        self._to_others(lambda logger: logger.log(event))

    def text(self, step: int, text: str) -> None:
        """Log a text sample wherever samples are shown."""
        self._to_others(lambda logger: logger.text(step, text))

    def flush(self) -> None:
        """Hand everything to the operating system; called at each save."""
        self._to_metrics(self._metrics.flush)
        self._to_others(lambda logger: logger.flush())

    def sync(self) -> None:
        """Wait until the history is on the device: what led to a checkpoint is as safe as that.

        For the thread that saves: a disk that hangs must not hold the training.
        """
        try:
            self._metrics.sync()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._warn(error)

    def close(self) -> None:
        """Flush and close everything. Nothing is raised, and a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self.flush()
        self._to_others(lambda logger: logger.close())
        self._to_metrics(self._metrics.close)

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
            _log.warning(message, _reason(error))
        self._metrics_failing = True

    def _to_others(self, action: Callable[[Logger], None]) -> None:
        for name, logger in list(self._others.items()):
            try:
                action(logger)
            except Exception as error:
                del self._others[name]
                _log.warning("%s failed and is off from here on: %s", name, _reason(error))


def _reason(error: Exception) -> str:
    """The first line of what went wrong, or the kind of error where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
