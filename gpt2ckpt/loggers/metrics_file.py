"""metrics.jsonl: one JSON object per line and event, one unbroken history across resumes.

Numbers are written so that they read back bitwise. JSON has no NaN or infinity: they are the
strings "NaN", "Infinity" and "-Infinity" (as in protobuf's JSON mapping), which `float()` reads.
"""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2ckpt.errors import InputError
from gpt2ckpt.files import durable
from gpt2ckpt.loggers.append_file import AppendFile
from gpt2ckpt.loggers.event import Event

_log = logging.getLogger(__name__)
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


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

    def log(self, event: Event) -> None:
        """Append one line.

        Raises:
            OSError: it could not be written now; the next call tries again.
        """
        self._lines.append(encode(event) + "\n")

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
        if lost := self._lines.lines_waiting:
            _log.warning("%d lines of %s could not be written and are lost", lost, self._path)
        self._lines.close()


def encode(event: Event) -> str:
    """An event as one line of JSON, without its newline."""
    return json.dumps({key: json_number(value) for key, value in event.items()}, allow_nan=False)


def read(path: Path) -> list[dict[str, Any]]:
    """The events of a file in its order; lines that are no event (torn by a kill) are left out."""
    return [event for _, event in _lines(path)]


def rewind(path: Path, step: int) -> list[dict[str, Any]]:
    """Take the events after `step` out of the file, in one atomic replacement.

    Kept lines stay as they are, byte for byte; a line torn by a kill goes. A file that is missing
    has no events.

    Returns:
        The removed events, in their order: what steps that are trained again are compared with.
    """
    if not path.exists():
        return []
    kept: list[bytes] = []
    removed: list[dict[str, Any]] = []
    for line, event in _lines(path):
        if event["step"] > step:
            removed.append(event)
        else:
            kept.append(line)
    content = b"".join(kept)
    if len(content) != path.stat().st_size:
        durable.write(path, content)
    return removed


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Whole lines with their newline, and the events that they hold."""
    for line in path.read_bytes().splitlines(keepends=True):
        event = _decode(line)
        if event is not None:
            yield line, event


def _decode(line: bytes) -> dict[str, Any] | None:
    """The event of a line, or None if a kill, a full disk or a power cut left only a part of it."""
    if not line.endswith(b"\n"):
        return None
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("step"), int):
        return None
    return {key: _from_json(value) for key, value in event.items()}


def json_number(value: float) -> float | str:
    """As JSON has it; see the module for numbers that are not finite."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _from_json(value: Any) -> Any:
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
