"""One checkpoint file, read from its path: opened with care, and named in every error."""

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gpt2ckpt.checkpoint import format
from gpt2ckpt.checkpoint.state import CheckpointMeta, CheckpointState
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.files import durable
from gpt2ckpt.files.links import inode_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer

PIECE = 1 << 20  # bytes of one read
Key = tuple[int, int, int, int]


def check(path: Path, watch: durable.Watch = durable.no_progress) -> None:
    """Raise CheckpointError unless every byte of the file is what was written.

    What `watch` raises, other than OSError, comes out as it is.
    """
    with _opened(path, watch) as file:
        format.verify(file)


def blameless(error: CheckpointError) -> OSError | None:
    """Return the reason why a file was not read that says nothing of its bytes; else None.

    A file that this user may not open, or for which there is no descriptor left, is not damaged; a
    device that cannot read it (EIO) says that it is.
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
    """Return the state in a file, with every byte verified. Raises what `load` does."""
    return CheckpointState.from_dict(load(path))


def read_head(path: Path) -> dict[str, Any]:
    """Return the stored form of a state without its tensors, from the head of the file.

    No digest is checked. Raises CheckpointError naming the file.
    """
    with _opened(path) as file:
        return format.read_meta(file)


def read_meta(path: Path) -> CheckpointMeta:
    """Return the state in a file without its tensors. Raises what `read_head` does."""
    return CheckpointMeta.from_dict(read_head(path))


def key_of(path: Path) -> Key | None:
    """Return what tells one state of a file on disk, whatever its names; None if it has gone."""
    try:
        info = path.stat()
    except OSError:
        return None
    return *inode_of(info), info.st_size, info.st_mtime_ns


def seal_of(path: Path) -> str:
    """The seal of a checkpoint that was loaded: equal for files of equal content only.

    Raises CheckpointError naming the file if it cannot be read.
    """
    with _opened(path) as file:
        file.seek(-format.SEAL_SIZE, os.SEEK_END)
        return file.read().decode("ascii", "replace")


def is_checkpoint(path: Path) -> bool:
    """Whether a file begins like a checkpoint of this project, whole or damaged."""
    try:
        with _open(path) as file:
            return format.is_ours(file)
    except (CheckpointError, OSError):
        return False


class _Watched(io.FileIO):
    """A file that tells how many bytes each read gave."""

    def __init__(self, descriptor: int, watch: durable.Watch) -> None:
        super().__init__(descriptor, "rb")
        self._watch = watch

    def readinto(self, buffer: "Buffer", /) -> int:
        count = super().readinto(memoryview(buffer)[:PIECE])
        self._watch(count)
        return count


def _open(path: Path, watch: durable.Watch = durable.no_progress) -> BinaryIO:
    """Open a plain file. Opening a pipe would wait for a writer for ever, so that is not waited."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError("it is no regular file")
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
