"""metrics.jsonl: one JSON object per line and event, one unbroken history across resumes.

Numbers are written so that they read back bitwise. JSON has no NaN or infinity: they are the
strings "NaN", "Infinity" and "-Infinity" (as in protobuf's JSON mapping), which `float()` reads.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any

from gpt2ckpt.errors import InputError
from gpt2ckpt.files import durable
from gpt2ckpt.loggers.append_file import AppendFile
from gpt2ckpt.loggers.base import MetricRecord
from gpt2ckpt.loggers.metrics_lines import DamagedLine, Line, Lines, parse

_log = logging.getLogger(__name__)


class MetricsFile:
    """Appends events to a file; each is with the operating system when `log` returns.

    An event that could not be written is kept and written before the next one. Nothing is left of
    a half-written line.

    Raises:
        InputError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._lines = AppendFile(path)
        except OSError as error:
            raise InputError(f"{path} cannot be opened for writing: {error.strerror}") from error

    def log(self, event: MetricRecord) -> None:
        """Append one line.

        Raises:
            OSError: it could not be written now; the next call tries again.
        """
        self._lines.append(encode(event) + "\n")

    def rewind(self, step: int) -> None:
        """Take the events after `step` back, before anything else is written.

        Raises:
            OSError: that could not be done now; the next call of `log` or `flush` tries again.
        """
        self._lines.rewrite(lambda: rewind(self._path, step))

    def text(self, step: int, text: str) -> None:
        """Samples are not metrics: they stand in the log."""

    def flush(self) -> None:
        """Hand over what still waits. Raises OSError."""
        self._lines.append("")

    def sync(self) -> None:
        """Wait until everything handed over is on the device. Raises OSError. For any thread."""
        self._lines.sync()

    def close(self) -> None:
        """Close the file; what still could not be written is lost, and said."""
        if lost := self._lines.pending_lines:
            _log.warning("%d lines of %s could not be written and are lost", lost, self._path)
        self._lines.close()


def encode(event: MetricRecord) -> str:
    """An event as one line of JSON, without its newline."""
    return json.dumps({key: json_number(value) for key, value in event.items()}, allow_nan=False)


def read_lines(path: Path) -> Lines:
    """Return the lines of a file; none if it is missing. Raises OSError if it cannot be read."""
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        return Lines()


def read(path: Path) -> list[dict[str, Any]]:
    """Return the events of a file in the order of their steps; damaged lines are left out."""
    return [line.event for line in read_lines(path).events]


def rewind(path: Path, step: int) -> None:
    """Take the events after `step` out of the file, at once or not at all.

    Every other line stays as it is, damaged ones too. Raises OSError.
    """
    lines = read_lines(path)
    kept: list[Line | DamagedLine] = [line for line in lines.events if line.step <= step]
    if len(kept) < len(lines.events):
        in_place = sorted([*kept, *lines.damaged], key=lambda line: line.number)
        durable.shorten(path, b"".join(line.content for line in in_place))


def json_number(value: float) -> float | str:
    """As JSON has it; see the module for numbers that are not finite."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
