"""Reads and writes jobs.jsonl, which records the status of each job in the folder of a sweep.

The process that trains a job appends its entries. One call of write(2) appends a complete line, so
parallel jobs do not mix their lines.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from gpt2ckpt.runs.layout import JOBS


class Status(StrEnum):
    """The status of a job in one launch of its sweep."""

    STARTED = "started"
    FINISHED = "finished"
    WAS_FINISHED = "finished before"
    FAILED = "failed"
    LOCKED = "another process has it"
    INTERRUPTED = "interrupted"
    NOT_STARTED = "not started"
    STOP = "stop"  # the sweep received a signal


COMPLETE = (Status.FINISHED, Status.WAS_FINISHED)


def now() -> str:
    """Return the local time as it is written in entries."""
    return f"{datetime.now():%Y-%m-%d %H:%M:%S}"


@dataclass(frozen=True)
class JournalEntry:
    """The status of a job; `number` is its number in this launch, and `job` its directory."""

    launch: str
    number: int
    status: Status
    job: str = ""
    label: str = ""
    best_val_loss: float | None = None
    reason: str = ""
    pid: int = field(default_factory=os.getpid)
    time: str = field(default_factory=now)


def append(sweep: Path, entry: JournalEntry) -> None:
    """Append an entry. Raises OSError."""
    line = json.dumps(asdict(entry), allow_nan=False) + "\n"
    descriptor = os.open(sweep / JOBS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read(sweep: Path, launch: str | None = None) -> list[JournalEntry]:
    """Return the entries of one launch or of all launches, without damaged lines."""
    try:
        lines = (sweep / JOBS).read_bytes().splitlines()
    except OSError:
        return []
    entries = [_entry(line) for line in lines]
    return [entry for entry in entries if entry and launch in (None, entry.launch)]


def _entry(line: bytes) -> JournalEntry | None:
    try:
        values = json.loads(line)
        loss = values.get("best_val_loss")
        return JournalEntry(
            **{name: str(values[name]) for name in ("launch", "job", "label", "reason", "time")},
            number=int(values["number"]),
            pid=int(values["pid"]),
            status=Status(values["status"]),
            best_val_loss=None if loss is None else float(loss),
        )
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return None


def last_of_each(entries: list[JournalEntry]) -> dict[int, JournalEntry]:
    """Return the newest entry of each job, by the number of the job."""
    return {entry.number: entry for entry in entries if entry.status is not Status.STOP}
