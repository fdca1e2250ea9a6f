"""Parses metrics.jsonl line by line into events and damaged lines.

The file may be edited by users and tools, have a byte-order mark or Windows line ends, or end in a
line that a power loss truncated. `parse` never raises, whatever the content.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Any

LOSSES = ("train_loss", "val_loss")
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
SHOWN = 40  # characters of an invalid value in a message


@dataclass(frozen=True)
class Line:
    """A line that contains an event: its bytes with the newline, and the event's numbers."""

    number: int  # line number in the file, from 1
    content: bytes
    event: dict[str, Any]

    @property
    def step(self) -> int:
        """Return the step of the event."""
        return int(self.event["step"])

    @property
    def kind(self) -> tuple[int, tuple[str, ...]]:
        """Return the step and the names of the losses; a run logs each such pair once."""
        return self.step, tuple(key for key in LOSSES if key in self.event) or tuple(self.event)


@dataclass(frozen=True)
class DamagedLine:
    """A line without a valid event, or with an event that a later line replaces."""

    number: int
    content: bytes
    reason: str


@dataclass(frozen=True)
class Lines:
    """The content of a file: its events sorted by step, and its damaged lines."""

    events: list[Line] = field(default_factory=list)
    damaged: list[DamagedLine] = field(default_factory=list)
    content: bytes = b""  # the unchanged content of the file
    is_sorted: bool = True


def join(lines: list[Line]) -> bytes:
    """Return the content of a file that consists of `lines`."""
    return b"".join(line.content for line in lines)


def parse(content: bytes) -> Lines:
    """Return the events and the damaged lines of a file.

    A null is a missing value, as pandas writes it. Of two events of the same kind, the later one is
    used. Empty lines are ignored.
    """
    found: dict[tuple[int, tuple[str, ...]], Line] = {}
    damaged: list[DamagedLine] = []
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.strip():
            continue
        event = _event_of(line)
        if isinstance(event, str):
            damaged.append(DamagedLine(number, _ended(line), event))
            continue
        new = Line(number, _ended(line.removeprefix(b"\xef\xbb\xbf")), event)
        if old := found.pop(new.kind, None):
            reason = f"line {number} has step {new.step} too"
            damaged.append(DamagedLine(old.number, old.content, reason))
        found[new.kind] = new
    events = list(found.values())
    ordered = sorted(events, key=lambda line: line.step)
    damaged.sort(key=lambda line: line.number)
    return Lines(ordered, damaged, content, is_sorted=events == ordered)


def _event_of(line: bytes) -> dict[str, Any] | str:
    """Return the numbers of the event in a line, or the reason why the line is damaged."""
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return "not JSON" if line.endswith((b"\n", b"\r")) else "truncated"
    if not isinstance(values, dict):
        return "not a JSON object"
    event = {key: number for key, value in values.items() if (number := _number(value)) is not None}
    step = event.get("step", -1)
    if not (0 <= step < 1 << 63 and step == int(step)):
        return _wrong("step", values)
    event["step"] = int(step)
    wrong = [key for key in LOSSES if key in values and key not in event]
    if wrong and not any(key in event for key in LOSSES):
        return _wrong(wrong[0], values)
    return event


def _wrong(key: str, values: dict[str, Any]) -> str:
    if key not in values:
        return f"no {key}"
    return f"{key} is {json.dumps(values[key])[:SHOWN]}"


def _number(value: Any) -> float | None:
    """Return a JSON value as a number, including NaN and infinity; None for anything else."""
    if isinstance(value, str):
        return NOT_FINITE.get(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        float(value)
    except OverflowError:
        return None
    return value


def _ended(line: bytes) -> bytes:
    return line if line.endswith(b"\n") else line + b"\n"
