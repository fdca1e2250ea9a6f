"""Durable file operations: what they write, link, move or delete survives a power loss.

`publish` replaces a file atomically: it writes a temporary file in the same directory, syncs it,
reads it back, checks it, renames it and syncs the directory. After a crash at any point the name
refers either to the old content or to the new content, never to a mixture of both.

Sources: rename(2), fsync(2); Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014.
"""

import contextlib
import errno
import filecmp
import os
import re
import secrets
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

TEMPORARY_SUFFIX = ".tmp"
CHUNK = 8 << 20  # bytes written or copied at a time
BLOCK = 1 << 16  # bytes: a multiple of the block size of any file system
SYNC_EVERY = 256 << 20  # bytes after which a long file is synced, so that progress is reported
_WRITE = os.O_WRONLY | os.O_NOFOLLOW
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS}
NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}  # SMB and some FUSE file systems

Watch: TypeAlias = Callable[[int], None]
"""Called with the number of bytes after each write."""


def no_progress(count: int) -> None:
    """Do nothing: the default watcher."""


def publish(
    target: Path,
    buffers: Iterable[bytes | memoryview],
    check: Callable[[Path], None],
    watch: Watch = no_progress,
    spare: Path | None = None,
) -> None:
    """Make `target` a durable file that contains exactly `buffers`.

    On any error the old `target` is unchanged. A failed fsync is never repeated on the same file:
    the kernel may have dropped the pages that it could not write, and would then report success.

    Args:
        target: The file to create or replace.
        buffers: Its content, in order.
        check: Called with the temporary file after it was synced and dropped from the page cache;
            raises an exception if the content is wrong.
        watch: Called with the number of bytes after each write.
        spare: A file to overwrite instead of a new temporary file, so that a save succeeds on a
            full disk. Deleting that file first is not enough: a different process could take the
            space, and XFS and btrfs release the space of a deleted file only later. The file keeps
            its name until it is truncated, because a full XFS has no space for a longer name.

    Raises:
        OSError: The file system failed (a full disk, a failing sync). Exceptions of `check` too.
    """
    if spare is not None and not _is_unshared_file(spare):
        spare.unlink(missing_ok=True)
        spare = None
    temporary = spare or temporary_name(target)
    with _deleted_on_error(temporary):
        descriptor = os.open(temporary, _WRITE if spare else _WRITE | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            if spare is None:
                _write_all(descriptor, buffers, watch)
            else:
                views = [memoryview(buffer).cast("B") for buffer in buffers]
                _write_all(descriptor, _in_blocks(views), watch)
                os.ftruncate(descriptor, sum(view.nbytes for view in views))
            os.fsync(descriptor)
            if hasattr(os, "posix_fadvise"):  # so that the check reads from the device
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        check(temporary)
        temporary.replace(target)
    sync_directory(target.parent)


def write(target: Path, content: bytes) -> None:
    """Make `target` a durable file that contains exactly `content`.

    Raises:
        OSError: The file system failed; the old file is unchanged.
    """

    def check(written: Path) -> None:
        if written.read_bytes() != content:
            raise OSError(
                errno.EIO, "the content read back differs from the content written", str(target)
            )

    publish(target, [content], check)


def sync_file(path: Path) -> None:
    """Wait until a file that a library wrote is on the device. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link(source: Path, name: Path, watch: Watch = no_progress) -> None:
    """Make `name` a durable hard link to `source`, or a copy if the file system has no hard links.

    Raises:
        OSError: The file system failed; `name` is unchanged.
    """
    temporary = temporary_name(name)
    try:
        os.link(source, temporary)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _copy(source, name, watch)
        return
    with _deleted_on_error(temporary):
        temporary.replace(name)
        # rename(2) does nothing if both names already refer to the same file.
        temporary.unlink(missing_ok=True)
    sync_directory(name.parent)


def move(source: Path, target: Path) -> None:
    """Move a file durably to a different directory of its file system. Raises OSError."""
    source.replace(target)
    sync_directory(target.parent)
    sync_directory(source.parent)


def shorten(path: Path, content: bytes) -> None:
    """Replace the content of a file by a part of that content.

    A part at the beginning of the file is kept by truncation, which also succeeds on a full disk.
    Any other part is written as in `write`.

    Raises:
        OSError: The file system failed; the file is unchanged.
    """
    unshare(path)
    with path.open("rb+") as file:
        if file.read(len(content)) == content:
            file.truncate(len(content))
            os.fsync(file.fileno())
            return
    write(path, content)


def unshare(path: Path) -> None:
    """Replace a file by a copy of itself if it has other hard links.

    Call this before writing in place, so that a snapshot of hard links (`cp -al`) keeps its
    content. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        info = path.stat(follow_symlinks=False)
        if stat.S_ISREG(info.st_mode) and info.st_nlink > 1:
            _copy(path, path, no_progress)


def delete(paths: Sequence[Path]) -> None:
    """Delete files durably; files that do not exist are ignored."""
    for path in paths:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in paths}:
        sync_directory(folder)


def sync_directory(folder: Path) -> bool:
    """Make the names in `folder` durable: a rename or a deletion is durable only after this.

    Returns:
        False if the file system does not support fsync of a directory (EINVAL, EOPNOTSUPP). Names
        may then be lost in a power loss.

    Raises:
        OSError: The sync failed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
        return False
    finally:
        os.close(descriptor)
    return True


def make_directory(folder: Path) -> None:
    """Create `folder` and its missing parents durably."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_directory(path.parent)


def temporary_name(target: Path) -> Path:
    """Return an unused name beside `target` that contains this host and process id."""
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return target.with_name(f".{target.name}.{owner}{TEMPORARY_SUFFIX}")


def clean_temporaries(folder: Path, *, of_all_hosts: bool = False) -> list[Path]:
    """Delete temporary files of dead processes in `folder` and return their paths.

    Call this before the process writes there. Files with the id of this process count as left by a
    dead process of the same id: the first process of every container has the same id.

    Args:
        folder: The directory to clean.
        of_all_hosts: Whether to delete files of other hosts too. Only a process that holds the
            lock of the run knows that the processes on other hosts are dead.
    """
    removed = abandoned_temporaries(folder, of_all_hosts=of_all_hosts)
    for path in removed:
        path.unlink(missing_ok=True)
    return removed


def abandoned_temporaries(folder: Path, *, of_all_hosts: bool = False) -> list[Path]:
    """Return the files that `clean_temporaries` deletes."""
    owned = re.compile(r"\..+\.[^/]+-(?P<pid>[0-9]{1,9})-[0-9a-f]{8}\.tmp")
    found = []
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        match = owned.fullmatch(path.name)
        if match is None:
            continue
        pid = int(match["pid"])
        is_here = f".{socket.gethostname()}-{pid}-" in path.name
        is_dead = pid == os.getpid() or not process_is_alive(pid)
        if is_dead if is_here else of_all_hosts:
            found.append(path)
    return found


def process_is_alive(pid: int) -> bool:
    """Return whether a process with this id runs on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _deleted_on_error(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _copy(source: Path, name: Path, watch: Watch) -> None:
    def compare(copy: Path) -> None:
        if not filecmp.cmp(source, copy, shallow=False):
            raise OSError(errno.EIO, "a copy differs from its source", str(source))

    publish(name, chunks(source), compare, watch)


def chunks(path: Path) -> Iterator[bytes]:
    """Yield the content of a file in pieces of CHUNK bytes."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _is_unshared_file(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        info = path.stat(follow_symlinks=False)
        return stat.S_ISREG(info.st_mode) and info.st_nlink == 1
    return False


def _write_all(descriptor: int, buffers: Iterable[bytes | memoryview], watch: Watch) -> None:
    unsynced = 0
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        while view.nbytes:
            count = os.write(descriptor, view[:CHUNK])
            view, unsynced = view[count:], unsynced + count
            watch(count)
            if unsynced >= SYNC_EVERY:
                os.fsync(descriptor)
                unsynced = 0
                watch(0)


def _in_blocks(views: Iterable[memoryview]) -> Iterator[memoryview]:
    """Yield the bytes of `views` in multiples of BLOCK, padded with zeros at the end.

    A full btrfs can overwrite only whole blocks in place.
    """
    gathered, filled = memoryview(bytearray(CHUNK)), 0
    for view in views:
        done = 0
        while done < view.nbytes:
            part = view[done : done + CHUNK - filled]
            gathered[filled : filled + part.nbytes] = part
            filled, done = filled + part.nbytes, done + part.nbytes
            if filled == CHUNK:
                yield gathered
                filled = 0
    end = filled + -filled % BLOCK
    gathered[filled:end] = bytes(end - filled)
    yield gathered[:end]
