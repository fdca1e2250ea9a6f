"""Measure how much disk space files take, and how much is free."""

import errno
import functools
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2ckpt.files.links import inode_of
from gpt2ckpt.units import human_bytes
from gpt2ckpt.worker import Worker

BLOCK = 512  # bytes; the unit of st_blocks (stat(2))
UNKNOWN_FREE = 1 << 60  # bytes free, if unknown: some network disks report no free space
ANSWER_SECONDS = 1.0  # the longest wait for a file system to report its free space
COUNT_SECONDS = 1.0  # the longest count of a directory: the files of a run take milliseconds
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}  # the disk itself, or a user's quota on it


@dataclass(frozen=True)
class DiskUsage:
    """Bytes that a directory takes on its file system, and bytes free there.

    If `is_counted` is false, the count was stopped early and `used` is a lower bound. `free` is
    UNKNOWN_FREE if the file system does not report its free space.
    """

    used: int
    free: int
    is_counted: bool = True


def measure_usage(directory: Path, seconds: float = COUNT_SECONDS) -> DiskUsage:
    """Return the disk usage of a directory, counting its files for at most `seconds`."""
    end, counter = time.monotonic() + seconds, _Counter()
    for path in paths_below(directory):
        counter.add(path)
        if time.monotonic() > end:
            return DiskUsage(counter.bytes, measure_free(directory), is_counted=False)
    return DiskUsage(counter.bytes, measure_free(directory))


def measure_free(directory: Path) -> int:
    """Return the bytes that this user can write to the file system of a directory.

    A directory that does not exist yet is on the file system of its nearest parent. Returns
    UNKNOWN_FREE if the file system does not report its free space, or does not answer in time.
    """
    answers: list[int] = []
    worker = _worker()
    if worker.silence < ANSWER_SECONDS and worker.submit(
        lambda: answers.append(_free_bytes(directory))
    ):
        worker.wait(ANSWER_SECONDS, silence=ANSWER_SECONDS)
    return answers[0] if answers else UNKNOWN_FREE


@functools.cache
def _worker() -> Worker:
    return Worker("disk-space", limit=8)


os.register_at_fork(after_in_child=_worker.cache_clear)  # a child process lacks the thread


def _free_bytes(directory: Path) -> int:
    try:
        while not directory.exists() and directory != directory.parent:
            directory = directory.parent
        usage = shutil.disk_usage(directory)
        return int(usage.free) if usage.total > 0 and usage.free >= 0 else UNKNOWN_FREE
    except Exception:
        return UNKNOWN_FREE


def paths_below(directory: Path) -> Iterator[Path]:
    """Yield every path below a directory, without following links.

    Deleted paths and unreadable paths are left out.
    """
    for parent, folders, files in os.walk(directory):
        yield from (Path(parent, name) for name in (*folders, *files))


def disk_bytes(paths: Iterable[Path]) -> int:
    """Return the bytes that files take on disk together; hard links to the same file count once."""
    counter = _Counter()
    for path in paths:
        counter.add(path)
    return counter.bytes


class _Counter:
    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[tuple[int, int]] = set()

    def add(self, path: Path) -> None:
        try:
            info = path.stat(follow_symlinks=False)
        except OSError:  # deleted in the meantime, or unreadable
            return
        if inode_of(info) not in self._seen:
            self._seen.add(inode_of(info))
            self.bytes += info.st_blocks * BLOCK


def free_space_text(free: int) -> str:
    """Return the free bytes of a file system as text."""
    return "free space not known" if free >= UNKNOWN_FREE else f"{human_bytes(free)} free"
