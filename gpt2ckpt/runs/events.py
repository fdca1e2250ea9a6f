"""events.jsonl: one JSON object per line for each event of a run; docs/events.md lists the events.

The file is a history: a resume from an older step or a rollback adds an event and removes none.
"""

import json
import logging
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpt2ckpt.checkpoint.event_sink import EventName
from gpt2ckpt.errors import InputError
from gpt2ckpt.loggers.append_file import AppendFile
from gpt2ckpt.loggers.metrics_file import to_json
from gpt2ckpt.runs.layout import EVENTS

log = logging.getLogger(__name__)


class EventLog:
    """Appends the events of one run. Only the process that holds the run's lock opens it.

    `write` passes the event to the operating system before it returns, so that the event survives a
    kill; `sync` waits for the device. Neither method raises an exception or waits long for a file
    system that hangs: an event that cannot be written is kept, and written before the next one.

    Raises:
        InputError: The file cannot be opened.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / EVENTS
        self._is_failing = False
        try:
            self._lines = AppendFile(self._path)
        except OSError as error:
            raise InputError(
                f"{self._path} cannot be opened for writing ({error.strerror}): check its "
                "permissions with ls -l"
            ) from error

    def write(self, event: EventName, step: int | None, **fields: Any) -> None:
        """Append one event, with the current time."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = to_json({"time": time, "event": event, "step": step, **fields})
        try:
            self._lines.append(line + "\n")
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self._warn(error)
        else:
            self._is_failing = False

    def sync(self) -> None:
        """Wait until all events are on the device, however slow it is."""
        try:
            self._lines.sync()
        except (OSError, ValueError) as error:
            self._warn(error)

    def close(self) -> None:
        """Write the remaining events, and sync and close the file, waiting at most some seconds."""
        with suppress(OSError, ValueError):
            self._lines.append("")
        if lost := self._lines.pending_lines:
            log.warning("%d lines of %s could not be written and are lost", lost, self._path)
        self._lines.close()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _warn(self, error: Exception) -> None:
        if not self._is_failing:
            reason = error.strerror if isinstance(error, OSError) else error
            log.warning("%s cannot be written for now, training continues: %s", self._path, reason)
        self._is_failing = True


def read_events(directory: str | Path) -> list[dict[str, Any]]:
    """Return the events of a run in the order in which they were written.

    A damaged line (torn by a kill) is left out. A run of an earlier version has no such file, and
    so no events. Raises OSError if the file cannot be read.
    """
    try:
        content = (Path(directory) / EVENTS).read_bytes()
    except FileNotFoundError:
        return []
    events = []
    for line in content.splitlines():
        with suppress(ValueError, RecursionError):
            item = json.loads(line)
            if isinstance(item, dict) and {"time", "event", "step"} <= item.keys():
                events.append(item)
    return events
