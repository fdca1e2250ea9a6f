"""The log file train.log. On a full disk, lines are kept in memory, and lost lines reported."""

import contextlib
import logging
import sys
from pathlib import Path

from gpt2ckpt.loggers.append_file import AppendFile


class LogFile(logging.Handler):
    """The logging handler that conf/train.yaml configures. Reports each failure once, on stderr."""

    def __init__(self, filename: str) -> None:
        super().__init__()
        self._path = Path(filename)
        self._file = AppendFile(self._path)
        self._is_failing = False

    def emit(self, record: logging.LogRecord) -> None:
        """Append one record. Never raises."""
        try:
            self._file.append(self.format(record) + "\n")
        except OSError as error:
            if not self._is_failing:
                _report(
                    f"{self._path} cannot be written for now: {error}. Its lines are kept in "
                    "memory. Free disk space or repair the file system"
                )
            self._is_failing = True
        except Exception:
            self.handleError(record)
        else:
            self._is_failing = False

    def close(self) -> None:
        """Write pending lines, or report how many are lost."""
        super().close()
        with contextlib.suppress(OSError, ValueError):
            self._file.append("")
        if lost := self._file.pending_lines:
            _report(f"{lost} lines of {self._path} could not be written and are lost")
        with contextlib.suppress(OSError):
            self._file.close()


def _report(message: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(message, file=sys.stderr, flush=True)
