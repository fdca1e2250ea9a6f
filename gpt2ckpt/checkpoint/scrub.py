"""Verify all files of a folder in the background, and repair damaged files.

A lost bit is found only when a file is read. A round reads every checkpoint once, at a limited
speed. A save interrupts the round, which later continues with the file that it had reached. A
separate thread reads the files, so that a read that hangs does not delay a save.

A damaged file without a copy is quarantined, because a save could replace a valid file by it.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import datetime
from pathlib import Path

from gpt2ckpt.checkpoint.event_sink import NO_EVENTS, EventSink
from gpt2ckpt.checkpoint.reading import Key, blameless, check, key_of
from gpt2ckpt.checkpoint.repair import Corrupt, quarantine, same_files
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.files import durable
from gpt2ckpt.units import human_bytes, plural
from gpt2ckpt.worker import Worker

log = logging.getLogger(__name__)
HANG_SECONDS = 60.0  # seconds without a byte, after which a read that hangs is reported
NAP = 0.02  # seconds between two checks for a save


class _Wanted(Exception):
    """A save was requested: the file is verified later, from its start."""


class Scrub:
    """Verifies one checkpoints/ folder in rounds.

    Only the thread that saves may call the methods, because files are repaired between saves.
    """

    def __init__(self, folder: Path, mb_per_s: float, events: EventSink = NO_EVENTS) -> None:
        self._folder, self._events = folder, events
        self._bytes_per_s = mb_per_s * 1e6
        self._under_way = False
        self._checked: dict[Key, str | None] = {}  # the damage of each file; None for a valid file
        self._bytes = 0
        self._reader = Worker("checkpoint-scrub", limit=1)
        self._has_warned = False
        self._reading: futures.Future[str | None] | None = None
        self.watch: durable.Watch = durable.no_progress

    def request(self) -> None:
        """Request a verification round, unless a round is in progress."""
        if not self._under_way:
            self._under_way, self._checked, self._bytes = True, {}, 0

    def run(self, is_wanted: Callable[[], bool]) -> None:
        """Continue the round until its end or until `is_wanted` returns True. Never raises."""
        if not self._under_way:
            return
        try:
            for names in same_files(self._folder):
                self._check_once(names[0], is_wanted)
            corrupt = self._confirmed(is_wanted)
            suspects = {item.names[0]: item.reason for item in corrupt}
            when = datetime.now()
            for sentence in quarantine(self._folder, suspects, when, events=self._events):
                log.warning("%s", sentence)
        except _Wanted:
            return
        except Exception as error:
            log.warning("the verification of the files in %s stopped: %s", self._folder, error)
        else:
            self._report(len(corrupt))
        self._under_way = False

    def close(self) -> None:
        """End the reading thread. Call it after the thread that saves has ended."""
        self._reader.close()

    def _check_once(self, path: Path, is_wanted: Callable[[], bool]) -> None:
        key = key_of(path)
        if key is None or key in self._checked:
            return
        reason = self._what_is_wrong(path, is_wanted)
        if path.exists():  # else a save or a user has deleted it
            self._checked[key] = reason

    def _what_is_wrong(self, path: Path, is_wanted: Callable[[], bool]) -> str | None:
        """Return the damage of a file; None for a valid file.

        Raises _Wanted as soon as a save is requested, and while the reading thread hangs in an
        earlier file.
        """
        if self._reading is not None and not self._reading.done():
            if self._reader.silence > HANG_SECONDS and not self._has_warned:
                self._has_warned = True
                log.warning("the verification of the files in %s hangs: see dmesg", self._folder)
            raise _Wanted
        result: futures.Future[str | None] = futures.Future()
        self._reading = result
        self._reader.submit(lambda: self._read(path, self._paced(is_wanted), result))
        while not futures.wait([result], NAP).done:
            if is_wanted():
                raise _Wanted
        return result.result()

    def _read(self, path: Path, watch: durable.Watch, result: "futures.Future[str | None]") -> None:
        """Verify one file, in the reading thread."""
        try:
            with _uncached(path):
                check(path, watch)
        except CheckpointError as error:
            if reason := blameless(error):
                result.set_exception(reason)
            else:
                result.set_result(str(error))
        except BaseException as error:
            result.set_exception(error)
        else:
            result.set_result(None)

    def _paced(self, is_wanted: Callable[[], bool]) -> durable.Watch:
        """Return a watch that limits the reading speed, and stops when a save is requested."""
        begun, done = time.monotonic(), 0

        def watch(count: int) -> None:
            nonlocal done
            done += count
            self._bytes += count
            self._reader.beat()
            self.watch(count)
            while not is_wanted():
                ahead = begun + done / self._bytes_per_s - time.monotonic()
                if ahead <= 0:
                    return
                time.sleep(min(ahead, NAP))
            raise _Wanted

        return watch

    def _confirmed(self, is_wanted: Callable[[], bool]) -> list[Corrupt]:
        """Return the damaged files that are still damaged when they are read a second time."""
        found = []
        for names in same_files(self._folder):
            key = key_of(names[0])
            if key is None or not self._checked.get(key):
                continue
            reason = self._what_is_wrong(names[0], is_wanted)
            if reason and names[0].exists():
                found.append(Corrupt(names, reason))
            else:
                self._checked[key] = None
        return found

    def _report(self, damaged: int) -> None:
        if self._checked and not damaged:
            log.info(
                "checked every byte of %s on disk (%s)",
                plural(len(self._checked), "file"),
                human_bytes(self._bytes),
            )


@contextlib.contextmanager
def _uncached(path: Path) -> Iterator[None]:
    """Drop the file from the page cache before and after the `with` statement."""
    _drop(path)
    try:
        yield
    finally:
        _drop(path)


def _drop(path: Path) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
