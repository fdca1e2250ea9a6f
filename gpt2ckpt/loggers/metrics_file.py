"""metrics.jsonl: the history of a run across all resumes, one JSON object per line and event.

A number is read back with exactly the bits that were written. JSON has no NaN or infinity; they are
stored as the strings "NaN", "Infinity" and "-Infinity", as in protobuf's JSON mapping.
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
    """Appends events to a file, with the guarantees of AppendFile.

    Raises:
        InputError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._lines = AppendFile(path)
        except OSError as error:
            raise InputError(
                f"{path} cannot be opened for writing: {error.strerror}. Check its permissions"
            ) from error

    def log(self, event: MetricRecord) -> None:
        """Append one event. After an OSError, the next call writes the event first."""
        self._lines.append(to_json(dict(event)) + "\n")

    def rewind(self, step: int) -> None:
        """Remove the events after `step` before any later event is written.

        Raises:
            OSError: the file cannot be rewritten; the next call of `log` or `flush` tries again.
        """
        self._lines.rewrite(lambda: rewind(self._path, step))

    def flush(self) -> None:
        """Write pending events. Raises OSError."""
        self._lines.append("")

    def sync(self) -> None:
        """Wait until all events are on the device; safe in any thread. Raises OSError."""
        self._lines.sync()

    def close(self) -> None:
        """Close the file; log how many pending events are lost."""
        if lost := self._lines.pending_lines:
            _log.warning("%d lines of %s could not be written and are lost", lost, self._path)
        self._lines.close()


def read_lines(path: Path) -> Lines:
    """Return the parsed lines of a file; no lines if the file does not exist. Raises OSError."""
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        return Lines()


def read(path: Path) -> list[dict[str, Any]]:
    """Return the events of a file sorted by step, without damaged lines. Raises OSError."""
    return [line.event for line in read_lines(path).events]


def rewind(path: Path, step: int) -> None:
    """Remove the events after `step` from the file atomically.

    All other lines are unchanged, including damaged ones. Raises OSError.
    """
    lines = read_lines(path)
    kept: list[Line | DamagedLine] = [line for line in lines.events if line.step <= step]
    if len(kept) < len(lines.events):
        in_place = sorted([*kept, *lines.damaged], key=lambda line: line.number)
        durable.shorten(path, b"".join(line.content for line in in_place))


def to_json(value: Any) -> str:
    """Return a value as one line of JSON; numbers that are not finite become strings."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return json_number(value) if isinstance(value, float) else value


def json_number(value: float) -> float | str:
    """Return a number as a JSON value: a string if it is not finite."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
