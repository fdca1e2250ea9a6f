"""A text file that lines are appended to, through times in which it cannot be written."""

import contextlib
import errno
import os
from pathlib import Path


class AppendFile:
    """Appends whole lines; each is with the operating system when `append` returns.

    Lines that could not be written are kept and written before the next ones; nothing is left of a
    half-written line. Opening raises OSError.
    """

    def __init__(self, path: Path) -> None:
        # Unbuffered, so that what `write` did not take is known and can be cut off again.
        self._file = path.open("ab", buffering=0)
        self._waiting = b"" if _ends_with_newline(path) else b"\n"

    @property
    def lines_waiting(self) -> int:
        """How many lines are in memory alone."""
        return self._waiting.strip().count(b"\n") + bool(self._waiting.strip())

    def append(self, lines: str) -> None:
        """Append `lines`, each with its newline. Raises OSError; the next call tries again."""
        self._waiting += lines.encode(errors="backslashreplace")
        self._write_waiting()

    def sync(self) -> None:
        """Wait until all that was written is on the device; another thread may append meanwhile.

        Raises OSError, also if the file was deleted.
        """
        os.fsync(self._file.fileno())
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise OSError(errno.ENOENT, "it was deleted, and is not made again by itself")

    def close(self) -> None:
        """Close the file; `lines_waiting` are lost."""
        self._file.close()

    def _write_waiting(self) -> None:
        end = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(self._waiting)
            if written != len(self._waiting):
                raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise
        self._waiting = b""


def _ends_with_newline(path: Path) -> bool:
    """Whether a new line can follow; an empty file is fine."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
