"""Keeping damaged files from taking the place of valid ones, which is what a save does with names.

Files are read in a thread of their own. A disk that gives nothing for some seconds is not waited
for: neither a save nor an evaluation may hang because an old file cannot be read.
"""

import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.archive_folders import CORRUPT, unused_folder
from gpt2ckpt.checkpoint.best import Best, best_of, find_best_file, restore_best_file
from gpt2ckpt.checkpoint.event_sink import NO_EVENTS, EventSink
from gpt2ckpt.checkpoint.reading import check, key_of, read_meta
from gpt2ckpt.checkpoint.repair import quarantine
from gpt2ckpt.checkpoint.store import misplacement
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.files import durable
from gpt2ckpt.worker import Worker

log = logging.getLogger(__name__)
PATIENCE = 10.0  # seconds without a byte
AT_MOST = 3600.0  # seconds for one file, however steadily its bytes come
Answer = TypeVar("Answer")


class UnresponsiveDisk(CheckpointError):
    """A file of which nothing can be read."""


class Guard:
    """Checks files of one checkpoints/ folder for the thread that saves, which alone calls it."""

    def __init__(
        self,
        folder: Path,
        run: str | None,
        valid: Path | None,
        watch: durable.Watch,
        events: EventSink = NO_EVENTS,
    ) -> None:
        """`valid` is a file that was verified already; `watch` is called with all bytes read."""
        self._folder, self._run, self._watch, self._events = folder, run, watch, events
        self._known_valid = {key_of(valid)} if valid is not None else set()
        self._reader: Worker | None = None

    def trust(self, path: Path) -> None:
        """Note that a file is valid: it was written and verified just now."""
        self._known_valid.add(key_of(path))

    def ensure_valid(self, path: Path) -> None:
        """Replace or move away a file that is not valid, not what its name says, or not readable.

        A failure is reported, and keeps no save from being made.
        """
        key = key_of(path)
        if key is None or key in self._known_valid:
            return
        try:
            reason = self._ask(lambda watch: self._what_is_wrong(path, watch))
            if reason is None:
                self._known_valid.add(key)
                return
            suspects = {path: reason}
            when, run, events = datetime.now(), self._run, self._events
            for sentence in quarantine(self._folder, suspects, when, run, events):
                log.warning("%s", sentence)
        except UnresponsiveDisk as error:
            self._move_away(path, error)
        except (OSError, CheckpointError) as error:
            log.warning("%s is damaged and cannot be moved away: %s", path, error)

    def best(self) -> Best | None:
        """Return the best model by its file; None if there is none."""
        path = self._folder / names.BEST
        if not path.exists():
            return None
        try:
            return self._ask(lambda watch: best_of(read_meta(path)))
        except CheckpointError:
            return None

    def restore_best(self, step: int, run: str) -> None:
        """Make best_model.pt again where it is missing and a file of `step`, the best, is left."""
        if (self._folder / names.BEST).exists():
            return
        try:
            holder = self._ask(lambda watch: find_best_file(self._folder, step, run))
            if holder is not None:
                log.info("%s", restore_best_file(self._folder, holder))
        except (OSError, CheckpointError) as error:
            log.warning("%s cannot be made again: %s", names.BEST, error)

    def close(self) -> None:
        """End the thread that reads, unless it hangs."""
        if self._reader is not None:
            self._reader.close()

    def _what_is_wrong(self, path: Path, watch: durable.Watch) -> str | None:
        try:
            check(path, watch)
            return misplacement(path, self._run)
        except CheckpointError as error:
            return str(error)

    def _move_away(self, path: Path, error: CheckpointError) -> None:
        """Without reading it: a name can be moved where the bytes do not come."""
        aside = unused_folder(self._folder, CORRUPT, datetime.now())
        self._events.write("checkpoint_corrupt", None, files=[path.name], reason=str(error))
        try:
            durable.make_directory(aside)
            durable.move(path, aside / path.name)
        except OSError as reason:
            log.warning("%s: %s, and it cannot be moved away: %s", path, error, reason)
        else:
            log.warning("%s: %s; it is moved to %s", path, error, aside.name)

    def _ask(self, question: Callable[[durable.Watch], Answer]) -> Answer:
        """Return the answer to a question that is asked by reading.

        Raises UnresponsiveDisk if none comes, and what `question` raises.
        """
        reader = self._reader = self._reader or Worker("checkpoint-reader", limit=1)
        answers: list[Answer] = []
        errors: list[BaseException] = []

        def watch(count: int) -> None:
            reader.beat()
            self._watch(count)

        def ask() -> None:
            try:
                answers.append(question(watch))
            except BaseException as error:
                errors.append(error)

        if reader.silence < PATIENCE and reader.submit(ask):
            reader.wait(AT_MOST, silence=PATIENCE)
        if errors:
            raise errors[0]
        if not answers:
            raise UnresponsiveDisk(f"the disk has given nothing of it for {PATIENCE:.0f} s")
        return answers[0]
