"""Space on disk that is kept for one emergency save: a file of that size with nothing in it.

An emergency save is written into its blocks, so that a disk which others fill up takes no state
with it. Regular saves never use it.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2ckpt.files import durable
from gpt2ckpt.files.disk_usage import BLOCK

RESERVATION = ".emergency_reserve"
MARGIN = 1 << 20  # bytes beyond the checkpoint and a fiftieth of it: what grows with a run, and
# what XFS wants to be free (some hundred kilobytes) before it lets a directory grow


@dataclass
class Reservation:
    """The reserve in a checkpoints/ folder; `held` is how many bytes of a save are safe now."""

    folder: Path
    held: int = 0

    @property
    def path(self) -> Path:
        return self.folder / RESERVATION

    def hold(self, size: int) -> str | None:
        """Keep space for a save of `size` bytes; less than is held already changes nothing.

        Returns None, or why there is no such space: what was held before is then held still.
        """
        if size <= self.held:
            return None
        if not hasattr(os, "posix_fallocate"):
            return "this system cannot reserve space"
        wanted = with_margin(size)
        try:
            real = _allocate(self.path, wanted)
        except OSError as error:
            self._shrink()
            return error.strerror or str(error)
        if real < wanted:
            self.release()
            return "this file system promises space without keeping it"
        self.held = size
        return None

    def surrender(self) -> Path | None:
        """The file for a save to write into, if space is held; nothing is held any more then."""
        held, self.held = self.held, 0
        return self.path if held else None

    def release(self) -> None:
        """Give the space back; also what a dead process left. Never fails."""
        self.held = 0
        with contextlib.suppress(OSError):
            self.path.unlink()
            durable.sync_directory(self.folder)

    def _shrink(self) -> None:
        """Back to what was held before an attempt that failed half-way."""
        if not self.held:
            self.release()
            return
        with contextlib.suppress(OSError), _opened(self.path) as descriptor:
            os.ftruncate(descriptor, with_margin(self.held))


def with_margin(size: int) -> int:
    """The bytes that a save of `size` may come to."""
    return size + size // 50 + MARGIN


def _allocate(path: Path, size: int) -> int:
    """Give the file at least `size` bytes of disk. Returns those that it really takes."""
    with _opened(path) as descriptor:
        os.posix_fallocate(descriptor, 0, size)
        return os.fstat(descriptor).st_blocks * BLOCK


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open the reserve, or make it; raises OSError for a link."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
