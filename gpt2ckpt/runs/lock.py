"""The lock of a live run, on one machine and between machines that share a file system.

On one machine the kernel keeps the lock: flock(2) on the directory, which ends with its process.
Other machines may not see that lock. For them the file run.lock names the owner, which rewrites the
file every few seconds (a heartbeat). A process on a different machine watches run.lock by its own
clock, and takes the lock over only if the file has stopped changing.
"""

import atexit
import contextlib
import errno
import logging
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from gpt2ckpt.errors import InputError, LockedError
from gpt2ckpt.files import durable
from gpt2ckpt.files.disk_usage import DISK_FULL
from gpt2ckpt.files.links import refuse_link
from gpt2ckpt.files.locks import Lock, try_lock
from gpt2ckpt.runs.layout import EVENTS, HISTORY, LINEAGE, LOCK_NAME, LOG, RECORD
from gpt2ckpt.runs.owner import SIZE, Verdict, decode, encode, judge, this_process

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0  # between heartbeats
WATCH_SECONDS = 60.0  # longer than a network file system caches a file
POLL_SECONDS = 1.0
# The files that a process of a run writes to by name: a link would redirect the writes.
WRITTEN = (LOCK_NAME, HISTORY, EVENTS, LOG, RECORD)


class RunLock:
    """The right to train in a directory, from construction until `release` or the process ends.

    run.lock exists while the lock is held. Deleting run.lock does not release the lock on this
    machine.
    """

    def __init__(
        self, directory: Path, *, beat: float = BEAT_SECONDS, watch: float = WATCH_SECONDS
    ) -> None:
        """Take the lock of `directory`. On a full disk, only processes on this machine respect it.

        Args:
            directory: The run directory.
            beat: Seconds between heartbeats.
            watch: Seconds without a heartbeat after which the owner on a different machine is dead.

        Raises:
            LockedError: A living process holds the lock; nothing was changed.
            InputError: A file that a run writes to is a link; nothing was changed.
            OSError: The directory cannot be written.
        """
        refuse_links(directory)
        self._path = directory / LOCK_NAME
        self._owner, self._beats = this_process(), 0
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._by_kernel = _lock_directory(self._descriptor, directory)
            self._before = os.fstat(self._descriptor)
            self._take(watch)
        except BaseException:
            self._close()
            raise
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._live, args=(beat,), daemon=True)
        self._heart.start()
        atexit.register(self.release)

    def release(self) -> None:
        """Release the lock. A second call and a call in a child process do nothing."""
        if self._descriptor >= 0 and os.getpid() == self._owner.pid:
            self._ended.set()
            self._heart.join(timeout=1)
            atexit.unregister(self.release)
            with contextlib.suppress(OSError), self._opened(os.O_RDONLY):
                self._path.unlink()
        self._close()

    def undo(self) -> None:
        """Release the lock of a directory in which nothing was changed.

        The modification time is restored, so that a backup does not find a change.
        """
        if self._descriptor < 0:
            return
        directory = os.dup(self._descriptor)
        try:
            self.release()
            with contextlib.suppress(OSError):
                os.utime(directory, ns=(self._before.st_atime_ns, self._before.st_mtime_ns))
        finally:
            os.close(directory)

    def follow(self, directory: Path) -> None:
        """Set the new name of the locked directory after this process renamed the directory."""
        self._path = directory / LOCK_NAME

    def check_place(self) -> None:
        """Raise OSError if a different directory now has the name of the locked one."""
        if not os.path.samestat(os.fstat(self._descriptor), self._path.parent.stat()):
            raise OSError(errno.ESTALE, "a different directory has taken its place")

    def check(self) -> None:
        """Raise OSError if another process trains a different run under the name of this directory.

        In that case the locked directory was moved, and writes by name would reach that run.
        """
        if not self._is_mine():
            raise OSError(errno.EBUSY, _refusal(self._path.parent))
        with contextlib.suppress(FileNotFoundError):  # removed and created again
            own = os.open(LINEAGE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._descriptor)
            with os.fdopen(own, "rb") as file:
                is_different = file.read() != (self._path.parent / LINEAGE).read_bytes()
            if is_different:
                raise OSError(errno.EBUSY, f"{self._path.parent} now belongs to a different run")

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _take(self, watch: float) -> None:
        """Create run.lock; replace it if its owner is dead."""
        while True:
            try:
                self._create()
                return
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno not in DISK_FULL or not self._by_kernel:
                    raise
                log.warning("%s cannot be written (%s)", self._path, error.strerror)
                return
            found = _read(self._path)
            if found is None:
                continue
            owner = decode(found)
            verdict = judge(owner, self._owner, kernel_lock_is_free=self._by_kernel)
            if verdict is Verdict.UNKNOWN:
                if owner:
                    message = "%s was locked by %s: watching it for %.0f s"
                    log.warning(message, self._path.parent, owner, watch)
                if _changes(self._path, found, watch):
                    verdict = Verdict.ALIVE
            if verdict is Verdict.ALIVE:
                raise LockedError(_refusal(self._path.parent))
            self._remove(found)

    def _create(self) -> None:
        """Create run.lock atomically with its content. Raises FileExistsError if it exists."""
        temporary = durable.temporary_name(self._path)
        try:
            with temporary.open("xb") as file:
                file.write(encode(self._owner, 0))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, self._path)
            except OSError as error:
                if error.errno not in durable.NO_LINKS:
                    raise
                with self._path.open("xb") as file:
                    file.write(encode(self._owner, 0))
        finally:
            temporary.unlink(missing_ok=True)

    def _remove(self, dead: bytes) -> None:
        """Remove the record `dead`, unless another process has replaced it in the meantime."""
        moved = durable.temporary_name(self._path)
        try:
            self._path.rename(moved)
        except FileNotFoundError:
            return
        if _read(moved) != dead:
            with contextlib.suppress(OSError):
                os.link(moved, self._path)
        moved.unlink(missing_ok=True)

    def _live(self, seconds: float) -> None:
        is_reported = False
        while not self._ended.wait(seconds):
            try:
                if not self._is_mine():
                    self._lose()
                    return
                self._beat()
            except OSError as error:  # a full or slow disk does not stop the run
                if error.errno == errno.ELOOP and not is_reported:
                    is_reported = True
                    log.warning(
                        "%s is a link or the file of a different run: it is not written, and other "
                        "machines cannot see that this run is alive. Remove it",
                        self._path,
                    )

    def _beat(self) -> None:
        """Rewrite run.lock with new content, which other machines see. Raises OSError."""
        self._beats += 1
        record = encode(self._owner, self._beats)
        with self._opened(os.O_RDWR) as descriptor:
            if os.fstat(descriptor).st_nlink > 1:  # a snapshot by hard links shares it
                durable.write(self._path, record)
                return
            os.pwrite(descriptor, record, 0)
            os.fdatasync(descriptor)

    @contextlib.contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        """Open run.lock. Raises OSError, with ELOOP for a link or a file of a different process."""
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self._path, flags)
        try:
            # The content identifies the file: the inode number of a deleted file is used again.
            owner = decode(os.pread(descriptor, SIZE, 0))
            if owner is None or owner.token != self._owner.token:
                raise OSError(errno.ELOOP, "not the file of this run", str(self._path))
            yield descriptor
        finally:
            os.close(descriptor)

    def _is_mine(self) -> bool:
        """Return whether run.lock names no other process; a missing or torn file names none."""
        owner = decode(_read(self._path) or b"")
        return owner is None or owner.token == self._owner.token

    def _lose(self) -> None:
        """Stop this process, which was suspended while a different machine took the run over."""
        log.error("%s; this process stops", _refusal(self._path.parent))
        os.kill(self._owner.pid, signal.SIGTERM)

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def is_locked(directory: Path) -> bool:
    """Return whether a process trains in `directory`, or may do so on a different machine.

    Returns at once and changes nothing.
    """
    return _ask(directory) is not Verdict.DEAD


def refuse_if_locked(directory: Path) -> None:
    """Raise LockedError if a process on this machine trains in `directory`."""
    if _ask(directory) is Verdict.ALIVE:
        raise LockedError(_refusal(directory))


def unwritable(directory: Path, error: OSError) -> InputError:
    """Return the error for a run directory that cannot be written."""
    return InputError(
        f"the run directory {directory} cannot be written ({error.strerror or error}): check its "
        "permissions with ls -ld, and the free space of its disk with df"
    )


def refuse_links(directory: Path) -> None:
    """Raise InputError if a file that a run writes to is a symbolic link or not a regular file."""
    for path in (directory / name for name in WRITTEN):
        refuse_link(path)
        if path.exists() and not (path.is_dir() if path.name == RECORD else path.is_file()):
            wanted = "folder" if path.name == RECORD else "regular file"
            raise InputError(f"{path} is not a {wanted}, which a run needs: move it away")


def _ask(directory: Path) -> Verdict:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return Verdict.DEAD
    except OSError:
        return Verdict.UNKNOWN
    state = try_lock(descriptor, shared=True)
    os.close(descriptor)
    if state is Lock.HELD:
        return Verdict.ALIVE
    try:
        found = _read(directory / LOCK_NAME)
    except OSError:
        return Verdict.UNKNOWN
    if found is None:
        return Verdict.DEAD
    return judge(decode(found), this_process(), kernel_lock_is_free=state is Lock.TAKEN)


def _lock_directory(descriptor: int, directory: Path) -> bool:
    """Lock a directory; return whether its file system supports such locks.

    Raises LockedError if another process holds the lock for longer than `_ask` does.
    """
    for _ in range(10):
        state = try_lock(descriptor)
        if state is not Lock.HELD:
            return state is Lock.TAKEN
        time.sleep(0.03)
    raise LockedError(_refusal(directory))


def _changes(path: Path, content: bytes, seconds: float) -> bool:
    """Return whether the content of a file changes within `seconds` of this process's clock."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(POLL_SECONDS, left))
        if _read(path) != content:
            return True
    return False


def _read(path: Path) -> bytes | None:
    """Return the start of a file, opened again to see the writes of other machines.

    Returns None if the file does not exist, and no bytes for a link or an irregular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise
        return b""
    try:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.read(descriptor, 1 << 16) if is_file else b""
    finally:
        os.close(descriptor)


def _refusal(directory: Path) -> str:
    try:
        owner = decode((directory / LOCK_NAME).read_bytes())
    except OSError:
        owner = None
    return (
        f"{directory} is being trained by {owner or 'another process'}: wait until it ends, or "
        "stop it"
    )
