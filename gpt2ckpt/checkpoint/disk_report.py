"""Reports of how long the disk lasts, and advice about a save that failed."""

import errno
import logging
import os
import shlex
import threading
from pathlib import Path

from gpt2ckpt.checkpoint.event_sink import NO_EVENTS, EventSink
from gpt2ckpt.files.disk_usage import (
    COUNT_SECONDS,
    DISK_FULL,
    UNKNOWN_FREE,
    DiskUsage,
    disk_bytes,
    free_space_text,
    measure_usage,
    paths_below,
)
from gpt2ckpt.units import human_bytes, human_duration

FEW_SAVES = 10

log = logging.getLogger(__name__)


class DiskReport:
    """Logs how long the disk of a checkpoints/ folder lasts, from a thread of its own.

    A run directory may hold a huge tree, or lie beside a disk that hangs: neither a save nor the
    training waits for that. A report that has not ended is not joined by a second one. That few
    saves fit is a warning once, until more fit again.
    """

    def __init__(self, folder: Path, events: EventSink = NO_EVENTS) -> None:
        self._folder, self._events = folder, events
        self._thread: threading.Thread | None = None
        self._is_scarce = False

    def start(
        self,
        step: int,
        bytes_per_save: int,
        seconds_per_save: float,
        most_bytes: int | None = None,
    ) -> None:
        """Start to count; the line is logged, for the save of `step`, when the count has ended.

        `most_bytes` is what all checkpoints can take at most; None if that has no bound.
        """
        if self._thread is None or not self._thread.is_alive():
            arguments = (step, bytes_per_save, seconds_per_save, most_bytes)
            self._thread = threading.Thread(target=self._log, args=arguments, daemon=True)
            self._thread.start()

    def wait(self, seconds: float = COUNT_SECONDS) -> None:
        """Give a report that is under way some time to end."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _log(
        self, step: int, bytes_per_save: int, seconds_per_save: float, most_bytes: int | None
    ) -> None:
        coming = None
        if most_bytes is not None:
            coming = most_bytes - disk_bytes(self._folder.glob("*.pt"))
        now = measure_usage(self._folder.parent)
        sentence, is_scarce = forecast(now, bytes_per_save, seconds_per_save, coming)
        if is_scarce and not self._is_scarce:
            saves = now.free // max(bytes_per_save, 1)
            self._events.write("disk_low", step, free_bytes=now.free, saves_left=saves)
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
    if number in DISK_FULL:
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
    if space.free >= UNKNOWN_FREE:
        return sentence, False
    left = space.free // max(bytes_per_save, 1)
    sentence += f": {left:,} more saves fit"
    if coming is not None and coming <= space.free:
        return f"{sentence}, and the disk lasts, since new files replace old ones", False
    return f"{sentence}, {human_duration(left * seconds_per_save)} at this rate", left < FEW_SAVES
