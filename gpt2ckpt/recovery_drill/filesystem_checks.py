"""Checks whether a file system is fit for saves, by trying each operation that saves rely on.

No program can detect that a device reports bytes as synced and then loses them.
"""

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from gpt2ckpt.errors import UserError
from gpt2ckpt.files import durable
from gpt2ckpt.runs.lock import RunLock, is_locked

PROBE_BYTES = 64 << 20
IN_MEMORY = {"tmpfs", "ramfs"}


@dataclass(frozen=True)
class Check:
    """One operation that saves or locks rely on; `problem` is empty if it works."""

    operation: str
    problem: str = ""


@dataclass
class FileSystem:
    """The results for the file system of a folder; speeds are in bytes per second."""

    kind: str
    device: str
    checks: list[Check] = field(default_factory=list)
    has_links: bool = False
    write_speed: float = 0.0
    read_speed: float = 0.0

    @property
    def problems(self) -> list[Check]:
        return [check for check in self.checks if check.problem]

    @property
    def is_in_memory(self) -> bool:
        """Return whether all files are lost when the machine restarts."""
        return self.kind in IN_MEMORY


def examine(folder: Path, probe_bytes: int = PROBE_BYTES) -> FileSystem:
    """Try every file operation of a run in `folder`, and delete the files that this created.

    Args:
        folder: an empty folder on the file system.
        probe_bytes: the number of bytes that are written to measure the speed.

    Raises:
        OSError: if the folder cannot be emptied.
    """
    kind, device = _mounted(folder)
    found = FileSystem(kind, device)
    attempts: dict[str, Callable[[], None]] = {
        "write, fsync, read back": lambda: _publish(folder, found, probe_bytes),
        "rename over a file": lambda: _replace(folder),
        "second name of a file": lambda: _link(folder, found),
        "fsync of the folder": lambda: _sync_folder(folder),
        "delete": lambda: _delete(folder),
        "create a folder only once": lambda: _make_twice(folder),
        "lock of a live run": lambda: _lock(folder),
    }
    for operation, attempt in attempts.items():
        found.checks.append(Check(operation, _problem_of(attempt)))
    for path in folder.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    return found


def _problem_of(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except OSError as error:
        return error.strerror or str(error)
    except UserError as error:
        return str(error)
    return ""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise OSError(errno.EIO, otherwise)


def _publish(folder: Path, found: FileSystem, size: int) -> None:
    """Publish a file as a save does, and measure the speed with incompressible bytes."""
    content, begun = os.urandom(size), time.perf_counter()

    def compare(path: Path) -> None:
        synced = time.perf_counter()
        same = path.stat().st_size == size and path.read_bytes() == content
        found.read_speed = size / (time.perf_counter() - synced)
        found.write_speed = size / (synced - begun)
        _require(same, "the bytes read back differ from the bytes written")

    durable.publish(folder / "probe", [content], compare)


def _replace(folder: Path) -> None:
    for content in (b"old", b"new"):
        durable.publish(folder / "replaced", [content], lambda path: None)
    _require(
        (folder / "replaced").read_bytes() == b"new",
        "after a rename, the name still has the old bytes",
    )
    _require(not list(folder.glob(".*")), "after a rename, the temporary name still exists")


def _sync_folder(folder: Path) -> None:
    (folder / "named").touch()
    _require(
        durable.sync_directory(folder),
        "it is not supported: a new name may not survive a power loss",
    )


def _link(folder: Path, found: FileSystem) -> None:
    source, name = folder / "linked", folder / "name"
    durable.publish(source, [b"bytes"], lambda path: None)
    durable.publish(name, [b"older"], lambda path: None)
    durable.link(source, name)
    _require(name.read_bytes() == b"bytes", "the second name has different bytes")
    found.has_links = source.samefile(name)
    durable.delete([source])
    _require(name.read_bytes() == b"bytes", "deleting one name changed the bytes of the other")


def _delete(folder: Path) -> None:
    path = folder / "deleted"
    durable.publish(path, [b"bytes"], lambda path: None)
    durable.delete([path])
    _require(path not in list(folder.iterdir()), "a deleted name still exists")


def _make_twice(folder: Path) -> None:
    (folder / "made").mkdir()
    try:
        (folder / "made").mkdir()
    except FileExistsError:
        return
    _require(False, "a folder could be created twice: two runs could share a directory")


def _lock(folder: Path) -> None:
    directory = folder / "locked"
    directory.mkdir()
    try:
        with RunLock(directory):
            _require(is_locked(directory), "a locked run is reported as not locked")
        _require(not is_locked(directory), "a released run is reported as locked")
    finally:
        for path in directory.iterdir():
            path.unlink()


def _mounted(folder: Path) -> tuple[str, str]:
    """Return the type and the device of the file system of `folder`, each "?" if unknown."""
    path = folder.resolve()
    mounts = [m for m in psutil.disk_partitions(all=True) if path.is_relative_to(m.mountpoint)]
    nearest = max(mounts, key=lambda mount: len(mount.mountpoint), default=None)
    return (nearest.fstype, nearest.device) if nearest else ("?", "?")
