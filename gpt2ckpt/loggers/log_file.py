"""train.log: on a full disk its lines wait in memory, and none is lost without a word."""

import contextlib
import logging
import sys
from pathlib import Path

from gpt2ckpt.loggers.append_file import AppendFile


class LogFile(logging.Handler):
    """What conf/train.yaml makes Hydra log to. A failure is said on stderr, once per episode."""

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
                _say(f"{self._path} cannot be written for now, its lines wait in memory: {error}")
            self._is_failing = True
        except Exception:
            self.handleError(record)
        else:
            self._is_failing = False

    def close(self) -> None:
        """Write what waits, or say how much is lost."""
        super().close()
        with contextlib.suppress(OSError, ValueError):
            self._file.append("")
        if lost := self._file.pending_lines:
            _say(f"{lost} lines of {self._path} could not be written and are lost")
        with contextlib.suppress(OSError):
            self._file.close()


def _say(sentence: str) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(sentence, file=sys.stderr, flush=True)
