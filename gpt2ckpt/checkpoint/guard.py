"""Verification of files before a save moves their names.

A save links latest_backup.pt to the file of latest.pt: if that file is damaged, it would replace a
valid backup. The guard verifies such files first. It reads in a thread of its own, so that a save
does not hang if an old file cannot be read.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from gpt2ckpt.checkpoint.archive_folders import CORRUPT, unused_folder
from gpt2ckpt.checkpoint.event_sink import NO_EVENTS, EventSink
from gpt2ckpt.checkpoint.reading import check, key_of, misplacement
from gpt2ckpt.checkpoint.repair import quarantine
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.files import durable
from gpt2ckpt.worker import Worker, resolve

log = logging.getLogger(__name__)
PATIENCE = 10.0  # seconds without a byte, after which the guard stops waiting for a read
LONGEST_READ = 3600.0  # seconds for one file, even if bytes arrive steadily
Answer = TypeVar("Answer")


class UnresponsiveDisk(CheckpointError):
    """No byte of a file could be read in time."""


class Guard:
    """Verifies files of one checkpoints/ folder. Only the thread that saves may call it.

    Args:
        folder: checkpoints/.
        run: The id of the run, if known.
        valid: A file that was already verified.
        watch: Called with the number of bytes of each read.
        events: Records `checkpoint_corrupt` and `checkpoint_repaired`.
    """

    def __init__(
        self,
        folder: Path,
        run: str | None,
        valid: Path | None,
        watch: durable.Watch,
        events: EventSink = NO_EVENTS,
    ) -> None:
        self._folder, self._run, self._watch, self._events = folder, run, watch, events
        self._known_valid = {key_of(valid)} if valid is not None else set()
        self._reader: Worker | None = None

    def trust(self, path: Path) -> None:
        """Record that a file is valid, because it was just written and verified."""
        self._known_valid.add(key_of(path))

    def ensure_valid(self, path: Path) -> None:
        """Replace or quarantine a file that is damaged, misplaced or unreadable.

        A failure is logged and does not prevent the save.
        """
        key = key_of(path)
        if key is None or key in self._known_valid:
            return
        try:
            reason = self.ask(lambda watch: self._what_is_wrong(path, watch))
            if reason is None:
                self._known_valid.add(key)
                return
            suspects = {path: reason}
            when, run, events = datetime.now(), self._run, self._events
            for sentence in quarantine(self._folder, suspects, when, run, events):
                log.warning("%s", sentence)
        except UnresponsiveDisk as error:
            self._quarantine_unread(path, error)
        except (OSError, CheckpointError) as error:
            log.warning("%s is damaged and cannot be quarantined: %s", path, error)

    def close(self) -> None:
        """End the reading thread, unless it hangs."""
        if self._reader is not None:
            self._reader.close()

    def _what_is_wrong(self, path: Path, watch: durable.Watch) -> str | None:
        try:
            check(path, watch)
            return misplacement(path, self._run)
        except CheckpointError as error:
            return str(error)

    def _quarantine_unread(self, path: Path, error: CheckpointError) -> None:
        folder = unused_folder(self._folder, CORRUPT, datetime.now())
        self._events.write("checkpoint_corrupt", None, files=[path.name], reason=str(error))
        try:
            durable.make_directory(folder)
            durable.move(path, folder / path.name)
        except OSError as reason:
            log.warning("%s: %s, and the file cannot be quarantined: %s", path, error, reason)
        else:
            log.warning("%s: %s; the file was moved to %s", path, error, folder.name)

    def ask(self, question: Callable[[durable.Watch], Answer]) -> Answer:
        """Call `question` in the reading thread, and return its answer.

        Raises UnresponsiveDisk if no byte is read for PATIENCE seconds, and exceptions of
        `question`.
        """
        reader = self._reader = self._reader or Worker("checkpoint-reader", limit=1)
        answer: Future[Answer] = Future()

        def watch(count: int) -> None:
            reader.beat()
            self._watch(count)

        is_free = reader.silence < PATIENCE
        if is_free and reader.submit(lambda: resolve(answer, lambda: question(watch))):
            reader.wait(LONGEST_READ, silence=PATIENCE)
        if not answer.done():
            raise UnresponsiveDisk(f"no byte of it was read for {PATIENCE:.0f} s")
        return answer.result()
