"""Disk space that is reserved for one emergency save: a file of the size of a checkpoint.

An emergency save overwrites this file, so that it succeeds on a full disk. Regular saves never use
its disk blocks.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt2ckpt.files import durable
from gpt2ckpt.files.disk_usage import BLOCK
from gpt2ckpt.units import human_bytes

log = logging.getLogger(__name__)
RESERVATION = ".emergency_reserve"
# Bytes beyond the size of a checkpoint and a fiftieth of it: checkpoints grow a little, and XFS
# needs some hundred kilobytes of free space before a directory can grow.
MARGIN = 1 << 20


@dataclass
class Reservation:
    """The reserved space in a checkpoints/ folder.

    `keep` reserves space, `surrender` passes the file to an emergency save, `renew` reserves space
    again after that save, and `release` frees it.

    Attributes:
        folder: checkpoints/.
        held: The bytes of a save for which space is reserved now.
    """

    folder: Path
    held: int = 0
    _is_wanted: bool = False
    _logged: str | None = None  # the last reason for a failure

    @property
    def path(self) -> Path:
        return self.folder / RESERVATION

    def keep(self, size: int) -> None:
        """Reserve space for a save of `size` bytes, and log the reason for a failure once."""
        self._is_wanted = True
        reason = self.hold(size)
        if reason and reason != self._logged:
            log.warning(
                "no space is kept for an emergency save of %s (%s): on a full disk it would fail",
                human_bytes(size),
                reason,
            )
        self._logged = reason

    def renew(self, size: int) -> None:
        """Reserve space as `keep` does, if `keep` was called before."""
        if self._is_wanted:
            self.keep(size)

    def hold(self, size: int) -> str | None:
        """Reserve space for a save of `size` bytes, unless that much is reserved already.

        Returns:
            None, or the reason for a failure; the earlier reservation is then unchanged.
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
            return "this file system does not allocate the space that it promises"
        self.held = size
        return None

    def surrender(self) -> Path | None:
        """Return the file that a save may overwrite, and end the reservation; None without one."""
        held, self.held = self.held, 0
        return self.path if held else None

    def release(self) -> None:
        """Delete the file, which may be that of a dead process. Never raises an exception."""
        self.held = 0
        with contextlib.suppress(OSError):
            self.path.unlink()
            durable.sync_directory(self.folder)

    def _shrink(self) -> None:
        """Undo a partial allocation."""
        if not self.held:
            self.release()
            return
        with contextlib.suppress(OSError), _opened(self.path) as descriptor:
            os.ftruncate(descriptor, with_margin(self.held))


def with_margin(size: int) -> int:
    """Return the bytes to reserve for a save of `size` bytes."""
    return size + size // 50 + MARGIN


def _allocate(path: Path, size: int) -> int:
    """Allocate `size` bytes of disk to a file, and return the bytes that the file really takes."""
    with _opened(path) as descriptor:
        os.posix_fallocate(descriptor, 0, size)
        return os.fstat(descriptor).st_blocks * BLOCK


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open or create the file. Raises OSError for a symbolic link."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
