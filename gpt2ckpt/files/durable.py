"""The file system: publish, link, delete, so that each step survives a power loss.

Knows nothing of checkpoints. The protocol of `publish` is the classic one: a temporary file in the
same folder, every byte written and synced, read back and checked, renamed, the folder synced. So
the name stands for the old bytes or for the new ones, never for a mixture.
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
BLOCK = 1 << 16  # bytes: a multiple of what any file system calls a block
SYNC_EVERY = 256 << 20  # bytes: a long file reaches the device bit by bit, and is seen to
_WRITE = os.O_WRONLY | os.O_NOFOLLOW
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS}
NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}  # SMB and some FUSE file systems

Watch: TypeAlias = Callable[[int], None]
"""Told of every piece of bytes that the device took or gave."""


def no_progress(count: int) -> None:
    """Default watcher: does nothing."""


def publish(
    target: Path,
    buffers: Iterable[bytes | memoryview],
    check: Callable[[Path], None],
    watch: Watch = no_progress,
    spare: Path | None = None,
) -> None:
    """Make `target` a durable file that holds exactly `buffers`.

    `check` gets the temporary file after it was synced and dropped from the page cache, and raises
    if its content is not what was meant. On any error the old `target` stays as it was. A sync that
    failed is never tried again on the same file: the kernel may have dropped what it could not
    write, and would report success.

    `spare` is a file that is not needed any more and has space: the bytes go into its blocks, so
    that a full disk can be written to. (Were it deleted first, somebody else could take its space,
    and XFS and btrfs give the space of a deleted file back some time later.) It keeps its name
    until it is cut to its length, since a full XFS has no space for a longer name before that.

    Raises OSError from the file system (a full disk, a failing sync) and whatever `check` raises.
    """
    if spare is not None and not _is_alone(spare):
        spare.unlink(missing_ok=True)
        spare = None
    temporary = spare or temporary_name(target)
    try:
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
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def write(target: Path, content: bytes) -> None:
    """Make `target` a durable file that holds exactly `content`. Raises OSError; the old file, if
    there is one, is kept then."""

    def check(written: Path) -> None:
        if written.read_bytes() != content:
            raise OSError(errno.EIO, "a file reads back otherwise than it was written", str(target))

    publish(target, [content], check)


def sync_file(path: Path) -> None:
    """Wait until the bytes of a file that another piece of code wrote are on the device.

    Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link(source: Path, name: Path, watch: Watch = no_progress) -> None:
    """Make `name` another durable name of `source`; a copy where there are no hard links.

    Either has the bytes of `source`, whatever they are. Raises OSError; `name` is then as it was.
    """
    temporary = temporary_name(name)
    try:
        os.link(source, temporary)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _copy(source, name, watch)
        return
    try:
        temporary.replace(name)
        # rename(2) does nothing when both names are links of one file: the temporary one stays.
        temporary.unlink(missing_ok=True)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_directory(name.parent)


def move(source: Path, target: Path) -> None:
    """Give a file another durable name, in another folder of its file system. Raises OSError."""
    source.replace(target)
    sync_directory(target.parent)
    sync_directory(source.parent)


def shorten(path: Path, content: bytes) -> None:
    """Replace what a file holds by a part of it. Raises OSError; the file is as it was then.

    A beginning of the file is what is left when the rest is cut off, which a full disk can do, too.
    Anything else is written beside it, as by `write`.
    """
    unshare(path)
    with path.open("rb+") as file:
        if file.read(len(content)) == content:
            file.truncate(len(content))
            os.fsync(file.fileno())
            return
    write(path, content)


def unshare(path: Path) -> None:
    """Give a file blocks of its own if it has other names too, before it is written in place.

    A snapshot by hard links (`cp -al`) keeps its bytes then. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        info = path.stat(follow_symlinks=False)
        if stat.S_ISREG(info.st_mode) and info.st_nlink > 1:
            _copy(path, path, no_progress)


def delete(paths: Sequence[Path]) -> None:
    """Delete `paths` durably; a path that is already gone is no error."""
    for path in paths:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in paths}:
        sync_directory(folder)


def sync_directory(folder: Path) -> bool:
    """Make the names in `folder` durable: renames and deletions are only then.

    Returns False where the file system has no such call; its names may then not survive a power
    loss. Raises OSError if the call fails.
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
    """Create `folder` and its missing parents, each durable in the one above it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_directory(path.parent)


def temporary_name(target: Path) -> Path:
    """A fresh name beside `target` that tells which process on which host it belongs to."""
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    return target.with_name(f".{target.name}.{owner}{TEMPORARY_SUFFIX}")


def clean_temporaries(folder: Path, *, of_all_hosts: bool = False) -> list[Path]:
    """Delete the temporary files that dead processes left in `folder`, on this host or on all.

    Call it before this process writes there: files with its own number are left by a dead process
    that had the same one, as a container's first process always has. Who holds the run's lock
    knows that the processes of other hosts are dead, too.
    """
    removed = left_by_the_dead(folder, of_all_hosts=of_all_hosts)
    for path in removed:
        path.unlink(missing_ok=True)
    return removed


def left_by_the_dead(folder: Path, *, of_all_hosts: bool = False) -> list[Path]:
    """The files that `clean_temporaries` deletes."""
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
    """Whether a process with this number runs on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _copy(source: Path, name: Path, watch: Watch) -> None:
    def compare(copy: Path) -> None:
        if not filecmp.cmp(source, copy, shallow=False):
            raise OSError(errno.EIO, "a copy differs from its source", str(source))

    publish(name, chunks(source), compare, watch)


def chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, some megabytes at a time."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _is_alone(path: Path) -> bool:
    """Whether a path is a regular file without other names, so that it may be written to."""
    with contextlib.suppress(FileNotFoundError):
        info = path.stat(follow_symlinks=False)
        return stat.S_ISREG(info.st_mode) and info.st_nlink == 1
    return False


def _write_all(descriptor: int, buffers: Iterable[bytes | memoryview], watch: Watch) -> None:
    """Write all bytes; those of a long file are synced on the way."""
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
    """The same bytes in whole blocks, the last one filled up with zeros.

    On a full btrfs only whole blocks can be written into space that a file has.
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
