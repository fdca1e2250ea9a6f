"""Appends lines to a file, even if the file cannot be written for some time."""

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from gpt2ckpt.files import durable
from gpt2ckpt.worker import Worker

PATIENCE = 2.0  # seconds that a caller waits for the file system


class AppendFile:
    """Appends complete lines to a file; the operating system has them when `append` returns.

    Lines that could not be written stay in memory, and are written before later lines. A partly
    written line is removed. A background thread writes, so a file system that hangs blocks the
    caller only once, for PATIENCE. If the file has other hard links (a snapshot), the logger writes
    to a copy that replaces it. Symbolic links are not followed.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_new = not path.exists()
        # Unbuffered, so that a partial write is noticed and can be undone.
        self._file = os.fdopen(_open(path), "ab", buffering=0)
        # Lines to write, and functions that replace the file once the earlier lines are written.
        self._waiting: deque[bytes | Callable[[], None]] = deque()
        if not _ends_with_newline(path):
            self._waiting.append(b"\n")
        self._error: Exception | None = None
        self._worker = Worker(path.name, limit=100)

    @property
    def pending_lines(self) -> int:
        """Return the number of lines that are not written yet."""
        waiting = b"".join(item for item in list(self._waiting) if isinstance(item, bytes)).strip()
        return waiting.count(b"\n") + bool(waiting)

    def append(self, lines: str) -> None:
        """Append lines, each with its newline. After an OSError, the next call tries again."""
        self._take(lines.encode(errors="backslashreplace"))

    def rewrite(self, change: Callable[[], None]) -> None:
        """Call `change`, which replaces the file, before any later line is written.

        Raises:
            OSError: `change` failed; the next call of `rewrite` or `append` tries again.
        """
        self._take(change)

    def _take(self, item: bytes | Callable[[], None]) -> None:
        if self._file.closed:
            raise ValueError("the file is closed")
        self._waiting.append(item)
        self._worker.submit(self._write_pending)  # a full queue contains this action already
        self._wait()
        if self._error is not None:
            raise self._error

    def sync(self) -> None:
        """Wait until all written lines are on the device; safe in any thread.

        Raises:
            OSError: the sync failed, or the file was deleted.
        """
        self._wait()
        os.fsync(self._file.fileno())
        if self._is_new:  # the name of a new file is durable only once its directory is
            durable.sync_directory(self._path.parent)
            self._is_new = False
        if os.fstat(self._file.fileno()).st_nlink == 0:
            raise OSError(errno.ENOENT, "the file was deleted and will not be created again")

    def close(self) -> None:
        """Sync and close the file, within a few seconds; pending lines are lost."""
        self._worker.submit(self._sync_and_close)
        self._worker.close()
        self._worker.join(0.0 if self._worker.silence > PATIENCE else PATIENCE)

    def _sync_and_close(self) -> None:
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())
        self._file.close()

    def _wait(self) -> None:
        """Wait until the thread is idle. Raises OSError if the file system hangs."""
        silence = self._worker.silence
        if silence > PATIENCE or not self._worker.wait(PATIENCE, silence=PATIENCE):
            raise OSError(
                errno.ETIMEDOUT, f"the disk has not responded for {max(silence, PATIENCE):.0f} s"
            )

    def _write_pending(self) -> None:
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
        """Write all lines up to the next rewrite with one system call."""
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
        """Open the file that now has the path, with the same descriptor."""
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
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
