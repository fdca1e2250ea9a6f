"""How much disk a run takes, how much is free, and for how long that is enough."""

import errno
import functools
import logging
import os
import shlex
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2ckpt.units import human_bytes, human_duration
from gpt2ckpt.worker import Worker

BLOCK = 512  # bytes; the unit of st_blocks (stat(2))
BOUNDLESS = 1 << 60  # bytes free where that is not known: some network disks count none
FEW_SAVES = 10
ANSWER_SECONDS = 1.0  # for a file system to tell how much is free
COUNT_SECONDS = 1.0  # for counting what a run takes: its own files take some milliseconds
FULL = {errno.ENOSPC, errno.EDQUOT}  # the disk itself, or a user's share of it

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DiskUsage:
    """Bytes on one file system: what a run takes there, and what is free (BOUNDLESS: not known).

    `used` is a lower bound if not `is_counted`: there was too much to count.
    """

    used: int
    free: int
    is_counted: bool = True


def measure_usage(run: Path, seconds: float = COUNT_SECONDS) -> DiskUsage:
    """Return the space of a run directory, all that is in it counted for `seconds` at most."""
    end, counted = time.monotonic() + seconds, Usage()
    for path in paths_below(run):
        counted.add(path)
        if time.monotonic() > end:
            return DiskUsage(counted.bytes, measure_free(run), is_counted=False)
    return DiskUsage(counted.bytes, measure_free(run))


def measure_free(folder: Path) -> int:
    """Return the bytes that this user can write to the file system that `folder` is on, or will be.

    BOUNDLESS where that is not known: the file system counts none, or does not answer in time.
    """
    answers: list[int] = []
    asker = _asker()
    if asker.silence < ANSWER_SECONDS and asker.hand_over(lambda: answers.append(_ask(folder))):
        asker.wait(ANSWER_SECONDS, silence=ANSWER_SECONDS)
    return answers[0] if answers else BOUNDLESS


@functools.cache
def _asker() -> Worker:
    return Worker("disk-space", limit=8)


def _ask(folder: Path) -> int:
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        usage = shutil.disk_usage(folder)
        return int(usage.free) if usage.total > 0 and usage.free >= 0 else BOUNDLESS
    except Exception:
        return BOUNDLESS


def paths_below(folder: Path) -> Iterator[Path]:
    """Yield every path below a folder; links are not followed.

    What is deleted meanwhile, or cannot be read, is left out: somebody may work in there.
    """
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent, name) for name in (*folders, *files))


class Usage:
    """What files take on disk together; names of the same blocks (hard links) count once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[tuple[int, int]] = set()

    def add(self, path: Path) -> None:
        """Count a path; one that is deleted meanwhile, or cannot be read, takes nothing."""
        try:
            info = path.stat(follow_symlinks=False)
        except OSError:
            return
        if (info.st_dev, info.st_ino) not in self._seen:
            self._seen.add((info.st_dev, info.st_ino))
            self.bytes += info.st_blocks * BLOCK


def disk_bytes(paths: Iterable[Path]) -> int:
    """Return the bytes that files take on disk together, as `Usage` counts them."""
    usage = Usage()
    for path in paths:
        usage.add(path)
    return usage.bytes


class DiskReport:
    """Logs how long the disk of a checkpoints/ folder lasts, from a thread of its own.

    A run directory may hold a huge tree, or lie beside a disk that hangs: neither a save nor the
    training waits for that. A report that has not ended is not joined by a second one. That few
    saves fit is a warning once, until more fit again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._is_scarce = False

    def start(
        self, bytes_per_save: int, seconds_per_save: float, most_bytes: int | None = None
    ) -> None:
        """Begin to count; the line is logged when that has ended.

        `most_bytes` is what all checkpoints can take at most; None if that has no bound.
        """
        if self._thread is None or not self._thread.is_alive():
            arguments = (bytes_per_save, seconds_per_save, most_bytes)
            self._thread = threading.Thread(target=self._log, args=arguments, daemon=True)
            self._thread.start()

    def wait(self, seconds: float = COUNT_SECONDS) -> None:
        """Give a report that is under way some time to end."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _log(self, bytes_per_save: int, seconds_per_save: float, most_bytes: int | None) -> None:
        coming = None
        if most_bytes is not None:
            coming = most_bytes - disk_bytes(self._folder.glob("*.pt"))
        now = measure_usage(self._folder.parent)
        sentence, is_scarce = forecast(now, bytes_per_save, seconds_per_save, coming)
        if is_scarce and not self._is_scarce:
            what = "warning: few saves fit on the disk: %s. %s shows what can go"
            log.warning(what, sentence, _prune(self._folder))
        else:
            log.info("disk: %s", sentence)
        self._is_scarce = is_scarce


def _prune(folder: Path) -> str:
    options = "--keep-rolling 2 --keep-epochs 2 --abandoned --corrupt"
    return f"python -m gpt2ckpt.checkpoints prune {shlex.quote(str(folder))} {options}"


def advice_for(error: Exception, folder: Path) -> str:
    """What to do about a save into `folder` that failed: what can be freed, or looked at."""
    number = error.errno if isinstance(error, OSError) else None
    where = shlex.quote(str(folder))
    if number in FULL:
        return (
            f"Free space, of which the run takes {human_bytes(disk_bytes(paths_below(folder)))}: "
            f"{_prune(folder)} shows what can go"
        )
    if number == errno.ENOENT and not os.path.lexists(folder):
        return f"It was removed, and is not made again by itself: mkdir -p {where} for the next"
    if number == errno.EBUSY:
        return "Nothing is written there: stop this process, and go on from where its run is now"
    if number == errno.EROFS:
        return f"{folder} has become read-only: see dmesg for why, and mount it writable again"
    if number in (errno.EPERM, errno.EACCES):
        return f"{folder} does not let this user write: see ls -ld and lsattr -d for why"
    return f"See dmesg for what is wrong with the disk under {folder}"


def forecast(
    space: DiskUsage, bytes_per_save: int, seconds_per_save: float, coming: int | None = None
) -> tuple[str, bool]:
    """Return a sentence on how long the disk lasts, and whether that is a reason to warn.

    `seconds_per_save` is the time from one save to the next; `coming` are the bytes that are still
    taken until each new file replaces an older one, None if that never happens.
    """
    used = f"{'' if space.is_counted else 'at least '}{human_bytes(space.used)}"
    sentence = f"the run takes {used}, {free_space_text(space.free)}"
    if space.free >= BOUNDLESS:
        return sentence, False
    left = space.free // max(bytes_per_save, 1)
    sentence += f": {left:,} more saves fit"
    if coming is not None and coming <= space.free:
        return f"{sentence}, and the disk lasts, since new files replace old ones", False
    return f"{sentence}, {human_duration(left * seconds_per_save)} at this rate", left < FEW_SAVES


def free_space_text(free: int) -> str:
    """Return the free bytes of a file system as text, or that it counts none."""
    return "free space not known" if free >= BOUNDLESS else f"{human_bytes(free)} free"
