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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"
CHUNK = 8 << 20  # bytes copied at a time
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS}


def publish(
    target: Path, buffers: Iterable[bytes | memoryview], check: Callable[[Path], None]
) -> None:
    """Make `target` a durable file that holds exactly `buffers`.

    `check` gets the temporary file after it was synced and dropped from the page cache, and raises
    if its content is not what was meant. On any error the old `target` stays as it was.

    Raises OSError from the file system (a full disk, a failing sync) and whatever `check` raises.
    """
    temporary = temporary_name(target)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            for buffer in buffers:
                _write_all(descriptor, memoryview(buffer).cast("B"))
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


def link(source: Path, name: Path) -> None:
    """Make `name` another durable name of `source`; a copy where there are no hard links.

    Either has the bytes of `source`, whatever they are. Raises OSError; `name` is then as it was.
    """
    temporary = temporary_name(name)
    try:
        os.link(source, temporary)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _copy(source, name)
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


def delete(paths: Sequence[Path]) -> None:
    """Delete `paths` durably; a path that is already gone is no error."""
    for path in paths:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in paths}:
        sync_directory(folder)


def sync_directory(folder: Path) -> None:
    """Make the names in `folder` durable: renames and deletions are only then."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def clean_temporaries(folder: Path) -> list[Path]:
    """Delete the temporary files that dead processes of this host left in `folder`.

    Call it before this process writes there: files with its own number are left by a dead process
    that had the same one, as a container's first process always has.
    """
    owned = re.compile(
        rf"\..+\.{re.escape(socket.gethostname())}-([0-9]{{1,9}})-[0-9a-f]{{8}}\.tmp"
    )
    removed = []
    for path in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        match = owned.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not process_is_alive(int(match[1]))):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def process_is_alive(pid: int) -> bool:
    """Whether a process with this number runs on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _copy(source: Path, name: Path) -> None:
    def compare(copy: Path) -> None:
        if not filecmp.cmp(source, copy, shallow=False):
            raise OSError(errno.EIO, "a copy differs from its source", str(source))

    publish(name, chunks(source), compare)


def chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, some megabytes at a time."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _write_all(descriptor: int, view: memoryview) -> None:
    while view.nbytes:
        view = view[os.write(descriptor, view) :]
