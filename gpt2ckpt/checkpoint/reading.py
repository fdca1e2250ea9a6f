"""Read checkpoint files by path, with the path in every error, and compare two files."""

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gpt2ckpt.checkpoint import format, names
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.state import CheckpointMeta, CheckpointState
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.files import durable
from gpt2ckpt.files.links import inode_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

PIECE = 1 << 20  # bytes of one read
Key = tuple[int, int, int, int]


def check(path: Path, watch: durable.Watch = durable.no_progress) -> None:
    """Raise CheckpointError unless every byte of the file is as it was written.

    `watch` is called with the number of bytes of each read. Its exceptions are passed on, except
    OSError.
    """
    with _opened(path, watch) as file:
        format.verify(file)


def blameless(error: CheckpointError) -> OSError | None:
    """Return the OSError that prevented reading a file; None for a damaged or missing file.

    A file that this user may not open, or for which no descriptor is free, is not damaged. A file
    that the device cannot read (EIO) is damaged.
    """
    cause = error.__cause__
    if not isinstance(cause, OSError) or cause.errno in (errno.EIO, errno.ENOENT):
        return None
    return cause


def load(path: Path) -> dict[str, Any]:
    """Return the stored form of the state in a file, with every byte verified.

    Raises CheckpointError naming the file.
    """
    with _opened(path) as file:
        return format.load(file)


def load_state(path: Path) -> CheckpointState:
    """Return the state in a file, with every byte verified. Raises the same as `load`."""
    return CheckpointState.from_dict(load(path))


def read_head(path: Path) -> dict[str, Any]:
    """Return the stored form of a state without its tensors, from the head of the file.

    No digest is checked. Raises CheckpointError naming the file.
    """
    with _opened(path) as file:
        return format.read_meta(file)


def read_meta(path: Path) -> CheckpointMeta:
    """Return the state in a file without its tensors. Raises the same as `read_head`."""
    return CheckpointMeta.from_dict(read_head(path))


def step_of(path: Path) -> int | None:
    """Return the step in a file, or else the step in its name; None if there is neither."""
    with contextlib.suppress(CheckpointError):
        meta = read_meta(path)
        if meta.has("step"):
            return meta.step
    named = names.role_of(path.name) in (Role.ROLLING, Role.EMERGENCY)
    return names.number_in(path.name) if named else None


def misplacement(path: Path, run: str | None) -> str | None:
    """Return why a file does not belong to its name or to the run `run`; None if it does.

    Raises CheckpointError if the file cannot be read.
    """
    meta = read_meta(path)
    reason = names.content_mismatch(path.name, meta)
    if not reason and run and meta.run.id not in ("", run):
        reason = f"it belongs to a different run, {meta.run.id}"
    return f"{path} cannot be used as {path.name}: {reason}" if reason else None


def key_of(path: Path) -> Key | None:
    """Return a key of the content of a file, the same for all its names; None without the file."""
    try:
        info = path.stat()
    except OSError:
        return None
    return *inode_of(info), info.st_size, info.st_mtime_ns


def seal_of(path: Path) -> str:
    """Return the seal of a checkpoint file: only files of equal content have equal seals.

    Raises CheckpointError naming the file if it cannot be read.
    """
    with _opened(path) as file:
        file.seek(-format.SEAL_SIZE, os.SEEK_END)
        return file.read().decode("latin-1")


def is_checkpoint(path: Path) -> bool:
    """Return whether a file begins like a checkpoint of this project, damaged or not."""
    try:
        with _open(path) as file:
            return format.is_ours(file)
    except (CheckpointError, OSError):
        return False


def compare_tensors(path: Path, other: Path) -> tuple[list[str], int]:
    """Compare two files tensor by tensor, bitwise and in constant memory; digests are not checked.

    Returns:
        A line for each tensor that differs in type, shape or a value, and the number of tensors.

    Raises:
        CheckpointError: One of the files is not a checkpoint.
    """
    with path.open("rb") as first, other.open("rb") as second:
        a, b = format.read_index(first), format.read_index(second)
        ours, theirs = format.tensors(a), format.tensors(b)
        lines = [f"{name}: only in A" for name in ours.keys() - theirs.keys()]
        lines += [f"{name}: only in B" for name in theirs.keys() - ours.keys()]
        for name in (name for name in ours if name in theirs):
            (dtype, shape, storage), (their_dtype, their_shape, stored) = ours[name], theirs[name]
            if (dtype, shape) != (their_dtype, their_shape):
                lines.append(f"{name}: {dtype} {shape} → {their_dtype} {their_shape}")
            elif not _same_bytes(first, storage, second, stored):
                lines.append(f"{name}: its values differ")
        return lines, len({*ours, *theirs})


def _same_bytes(first: BinaryIO, a: format.Storage, second: BinaryIO, b: format.Storage) -> bool:
    first.seek(a.offset)
    second.seek(b.offset)
    left = a.size
    while left > 0:
        part = first.read(min(left, PIECE))
        if not part:
            raise CheckpointError(f"{Path(first.name)} became shorter while it was read")
        if part != second.read(len(part)):
            return False
        left -= len(part)
    return True


class _Watched(io.FileIO):
    """A file that calls `watch` with the number of bytes of each read."""

    def __init__(self, descriptor: int, watch: durable.Watch) -> None:
        super().__init__(descriptor, "rb")
        self._watch = watch

    def readinto(self, buffer: "Buffer", /) -> int:
        count = super().readinto(memoryview(buffer)[:PIECE])
        self._watch(count)
        return count


def _open(path: Path, watch: durable.Watch = durable.no_progress) -> BinaryIO:
    """Open a regular file. With O_NONBLOCK, opening a pipe does not wait for a writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError("it is not a regular file")
    if watch is durable.no_progress:
        return open(descriptor, "rb")  # noqa: PTH123
    return io.BufferedReader(_Watched(descriptor, watch))


@contextlib.contextmanager
def _opened(path: Path, watch: durable.Watch = durable.no_progress) -> Iterator[BinaryIO]:
    try:
        with _open(path, watch) as file:
            yield file
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
