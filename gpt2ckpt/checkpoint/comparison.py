"""Whether the tensors of two checkpoint files are bitwise the same, in constant memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gpt2ckpt.checkpoint import format
from gpt2ckpt.errors import CheckpointError

CHUNK = 8 << 20  # bytes of each file that are in memory


def compare_tensors(path: Path, other: Path) -> tuple[list[str], int]:
    """A line for each tensor that is not bitwise the same, and how many tensors there are.

    Raises CheckpointError for a file that is no checkpoint; digests are not checked here.
    """
    with path.open("rb") as first, other.open("rb") as second:
        a, b = format.read_index(first), format.read_index(second)
        return list(_tensors(first, a, second, b)), len({*format.tensors(a), *format.tensors(b)})


def _tensors(first: BinaryIO, a: format.Index, second: BinaryIO, b: format.Index) -> Iterator[str]:
    """A line for each tensor that is not bitwise the same in type, shape and every value."""
    ours, theirs = format.tensors(a), format.tensors(b)
    for name in ours.keys() - theirs.keys():
        yield f"{name}: only in A"
    for name in theirs.keys() - ours.keys():
        yield f"{name}: only in B"
    for name in (name for name in ours if name in theirs):
        (dtype, shape, storage), (their_dtype, their_shape, other) = ours[name], theirs[name]
        if (dtype, shape) != (their_dtype, their_shape):
            yield f"{name}: {dtype} {shape} → {their_dtype} {their_shape}"
        elif not _same_bytes(first, storage.offset, second, other.offset, storage.size):
            yield f"{name}: its values differ"


def _same_bytes(first: BinaryIO, start: int, second: BinaryIO, other: int, size: int) -> bool:
    first.seek(start)
    second.seek(other)
    while size > 0:
        part = first.read(min(size, CHUNK))
        if not part:
            raise CheckpointError(f"{Path(first.name)} has become shorter while it was read")
        if part != second.read(len(part)):
            return False
        size -= len(part)
    return True
