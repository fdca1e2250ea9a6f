"""A text file that lines are appended to, through times in which it cannot be written."""

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from gpt2ckpt.files import durable
from gpt2ckpt.worker import Worker

PATIENCE = 2.0  # seconds that a caller waits for the file system to take its lines


class AppendFile:
    """Appends whole lines; each is with the operating system when `append` returns.

    Lines that could not be written are kept and written before the next ones; nothing is left of a
    half-written line. A thread writes them, so that a file system which hangs holds a caller for
    some seconds, once, and no longer. A file that has other names (a snapshot by hard links) is
    copied before it is written, and a link is not followed. Opening raises OSError.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Unbuffered, so that what `write` did not take is known and can be cut off again.
        self._file = os.fdopen(_open(path), "ab", buffering=0)
        # Lines to write, and functions that change the file after the lines before them.
        self._waiting: deque[bytes | Callable[[], None]] = deque()
        if not _ends_with_newline(path):
            self._waiting.append(b"\n")
        self._error: Exception | None = None
        self._worker = Worker(path.name, limit=100)

    @property
    def pending_lines(self) -> int:
        """How many lines are in memory alone."""
        waiting = b"".join(item for item in list(self._waiting) if isinstance(item, bytes)).strip()
        return waiting.count(b"\n") + bool(waiting)

    def append(self, lines: str) -> None:
        """Append `lines`, each with its newline. Raises OSError; the next call tries again."""
        self._take(lines.encode(errors="backslashreplace"))

    def rewrite(self, change: Callable[[], None]) -> None:
        """Let `change` replace the file before anything else is written.

        Raises OSError if that fails; the next call of this or of `append` tries again.
        """
        self._take(change)

    def _take(self, item: bytes | Callable[[], None]) -> None:
        if self._file.closed:
            raise ValueError("it is closed")
        self._waiting.append(item)
        self._worker.hand_over(self._write_pending)  # if that finds no place, another one waits
        self._wait()
        if self._error is not None:
            raise self._error

    def sync(self) -> None:
        """Wait until all that was written is on the device; another thread may append meanwhile.

        Raises OSError, also if the file was deleted.
        """
        self._wait()
        os.fsync(self._file.fileno())
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise OSError(errno.ENOENT, "it was deleted, and is not made again by itself")

    def close(self) -> None:
        """Close the file; `pending_lines` are lost."""
        self._worker.hand_over(self._file.close)
        self._worker.close()
        self._worker.has_ended(0.0 if self._worker.silence > PATIENCE else PATIENCE)

    def _wait(self) -> None:
        """Wait until the thread has nothing to do. Raises OSError if the file system hangs."""
        silence = self._worker.silence
        if silence > PATIENCE or not self._worker.wait(PATIENCE, silence=PATIENCE):
            raise OSError(errno.ETIMEDOUT, f"its disk has taken nothing for {silence:.0f} s")

    def _write_pending(self) -> None:
        """In the thread: write what waits, or keep it and note the error."""
        try:
            while self._waiting:
                change = self._waiting[0]
                if isinstance(change, bytes):
                    self._write_lines()
                else:
                    change()
                    self._reopen()
                    self._waiting.popleft()
        except Exception as error:
            self._error = error
        else:
            self._error = None

    def _write_lines(self) -> None:
        """Write the lines that wait, up to the next change of the file, with one call."""
        lines: list[bytes] = []
        for item in list(self._waiting):
            if not isinstance(item, bytes):
                break
            lines.append(item)
        self._write(b"".join(lines))
        for _ in lines:
            self._waiting.popleft()

    def _write(self, data: bytes) -> None:
        if os.fstat(self._file.fileno()).st_nlink > 1:
            self._reopen()
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise

    def _reopen(self) -> None:
        """Continue in the file that has the name now, under the same descriptor."""
        descriptor = _open(self._path)
        try:
            os.dup2(descriptor, self._file.fileno(), inheritable=False)
        finally:
            os.close(descriptor)


def _open(path: Path) -> int:
    durable.unshare(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o666)


def _ends_with_newline(path: Path) -> bool:
    """Whether a new line can follow; an empty file is fine."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
