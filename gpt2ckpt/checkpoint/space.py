"""How much disk a run takes, how much is free, and for how long that is enough."""

import errno
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gpt2ckpt.units import human_bytes

BLOCK = 512  # bytes; the unit of st_blocks (stat(2))
BOUNDLESS = 1 << 60  # bytes free on a file system that counts none, as some network disks do
FEW_SAVES = 10
FULL = {errno.ENOSPC, errno.EDQUOT}  # the disk itself, or a user's share of it


@dataclass(frozen=True)
class Space:
    """Bytes on one file system: what a run takes there, and what is free."""

    used: int
    free: int

    def saves_left(self, bytes_per_save: int) -> int:
        """How many more saves of that size fit."""
        return self.free // max(bytes_per_save, 1)


def measure(run: Path) -> Space:
    """The space of a run directory, all that is in it counted."""
    return Space(disk_bytes(run.rglob("*")), measure_free(run))


def measure_free(folder: Path) -> int:
    """Free bytes of the file system that `folder` is on, or will be, for this user."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else BOUNDLESS


def disk_bytes(paths: Iterable[Path]) -> int:
    """What files take on disk together; names of the same blocks (hard links) count once."""
    blocks: dict[tuple[int, int], int] = {}
    for path in paths:
        try:
            info = path.stat(follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            continue  # deleted while we looked, by a run that is alive
        blocks[info.st_dev, info.st_ino] = info.st_blocks
    return sum(blocks.values()) * BLOCK


def remedy(error: Exception, folder: Path) -> str:
    """What to do about a save into `folder` that failed: what can be freed, or looked at."""
    number = error.errno if isinstance(error, OSError) else None
    where = shlex.quote(str(folder))
    if number in FULL:
        return (
            f"Free space, of which the run takes {human_bytes(disk_bytes(folder.rglob('*')))}: "
            f"python -m gpt2ckpt.checkpoints prune {where} --keep-rolling 2 --keep-epochs 2 "
            "--abandoned --corrupt shows what can go"
        )
    if number == errno.ENOENT and not folder.exists():
        return f"It was removed, and is not made again by itself: mkdir -p {where} for the next"
    if number == errno.EBUSY:
        return "Nothing is written there: stop this process, and go on from where its run is now"
    if number == errno.EROFS:
        return f"{folder} has become read-only: see dmesg for why, and mount it writable again"
    if number in (errno.EPERM, errno.EACCES):
        return f"{folder} does not let this user write: see ls -ld and lsattr -d for why"
    return f"See dmesg for what is wrong with the disk under {folder}"


def outlook(space: Space, bytes_per_save: int, seconds_per_save: float | None) -> tuple[str, bool]:
    """A sentence on how long the disk lasts, and whether that is a reason to warn.

    `seconds_per_save` is the time from one save to the next; None if it is not known yet.
    """
    left = space.saves_left(bytes_per_save)
    sentence = f"the run takes {human_bytes(space.used)}, {free_words(space.free)}"
    if space.free >= BOUNDLESS:
        return sentence, False
    sentence += f": {left:,} more saves fit"
    if seconds_per_save is not None:
        sentence += f", {left * seconds_per_save / 3600:,.1f} hours at this rate"
    return sentence, left < FEW_SAVES


def free_words(free: int) -> str:
    """Return the free bytes of a file system as text, or that it counts none."""
    return "free space not known" if free >= BOUNDLESS else f"{human_bytes(free)} free"
