"""The bytes of a checkpoint: encoding of a state as one self-contained file, and decoding.

This module works on open files: it knows no paths and no retention. docs/format.md describes the
format for readers in other languages.

A file is a zip archive with these records in order: `meta.json` (the entries of the state without
tensors), `tensors.json` (the entries with tensors, and the record, dtype, shape and digest of each
tensor), `data.pkl`, `byteorder` and `version` (for torch.load), then `data/0`, `data/1`, … (raw
bytes). The comment of the archive is called the seal: it is the digest of every byte outside the
tensors. So exactly one digest covers each byte of the file, except the digits of the seal. All
digests are computed from memory before anything is written.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import xxhash

from gpt2ckpt.checkpoint import tensor_tree, zip_container
from gpt2ckpt.checkpoint.tensor_tree import ITEM_SIZES, TENSOR_KEY
from gpt2ckpt.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "gpt2ckpt/1"
ROOT = "gpt2ckpt"
FOREIGN = "it is not a checkpoint of gpt2ckpt"
SEAL_PREFIX = b"gpt2ckpt seal xxh3_128 "
SEAL_SIZE = len(SEAL_PREFIX) + 32
CHUNK = 1 << 20  # bytes digested at a time: small enough to stay in the processor's cache
LARGEST_GAP = 4 * zip_container.LARGEST_RECORD  # bytes between tensors, which are read at once
MOST_LEVELS = 100  # of nested metadata, since readers may recurse once per level
CONSTANT_RECORDS = (("byteorder", b"little"), ("version", b"3\n"))  # for torch.load

Buffer = bytes | memoryview


@dataclass(frozen=True)
class Encoded:
    """A state as buffers that make up the file when they are joined; tensors are not copied."""

    buffers: list[Buffer]
    size: int


@dataclass(frozen=True)
class Storage:
    """The position of the raw bytes of a tensor in the file, and their digest."""

    offset: int
    size: int
    digest: str


@dataclass(frozen=True)
class Index:
    """The metadata of a file, its tree of tensors, and their storages."""

    meta: dict[str, Any]
    tree: dict[str, Any]
    storages: list[Storage]


# ---------------------------------------------------------------- writing


def encode(state: dict[str, Any]) -> Encoded:
    """Encode a state as a file.

    Args:
        state: A dict with str keys of None, bool, int, float, str, list, dict and contiguous CPU
            tensors. The tensors must not change until the buffers are written.

    Raises:
        TypeError: A value has a different type.
        ValueError: A tensor is not contiguous or not on the CPU, or the metadata is too large.
    """
    from gpt2ckpt.checkpoint.torch_pickle import pickle_state

    if nests_beyond(state, MOST_LEVELS):
        raise ValueError(f"the state nests more than {MOST_LEVELS} levels deep")
    storages = _Storages()
    state = plain(state, lambda tensor: tensor)
    tree = plain(state, storages.describe)
    with_tensors = {key for key in tree if _holds_tensor(tree[key])}
    meta = {key: value for key, value in tree.items() if key not in with_tensors}
    pickled = pickle_state(state, storages.add)
    table = {
        "tree": {key: value for key, value in tree.items() if key in with_tensors},
        "storages": [[view.nbytes, digest(view)] for view in storages.views],
    }
    contents: list[tuple[str, Buffer]] = [
        ("meta.json", _json(meta)),
        ("tensors.json", _json(table)),
        ("data.pkl", pickled),
        *CONSTANT_RECORDS,
        *((f"data/{i}", view) for i, view in enumerate(storages.views)),
    ]
    largest = max(contents[:3], key=lambda item: len(item[1]))
    if len(largest[1]) > zip_container.LARGEST_RECORD:
        raise ValueError(f"{largest[0]} of the state would have {len(largest[1]):,} bytes")
    return _seal(contents)


def digest(buffer: Buffer) -> str:
    """Return the XXH3 digest of 128 bits as 32 hexadecimal digits.

    Source: https://github.com/Cyan4973/xxHash
    """
    return xxhash.xxh3_128_hexdigest(buffer)


class _Storages:
    """The distinct tensors of a state in the order of their first use; tied tensors are one."""

    def __init__(self) -> None:
        self.views: list[memoryview] = []
        self._numbers: dict[tuple[int, int, str], int] = {}
        self._alive: list[Tensor] = []

    def add(self, tensor: "Tensor") -> int:
        import torch

        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise ValueError("a tensor of a checkpoint must be contiguous and on the CPU")
        size = tensor.numel() * tensor.element_size()
        # torch.load reads a record as one dtype: the same bytes as a different dtype need a record.
        key = (tensor.data_ptr() if size else id(tensor), size, _dtype_of(tensor))
        if key not in self._numbers:
            self._numbers[key] = len(self.views)
            flat = tensor.detach().reshape(-1).view(torch.uint8)
            self.views.append(flat.numpy().data)
            self._alive.append(tensor)
        return self._numbers[key]

    def describe(self, tensor: "Tensor") -> dict[str, Any]:
        return {TENSOR_KEY: [self.add(tensor), _dtype_of(tensor), list(tensor.shape)]}


def plain(value: Any, leaf: Callable[["Tensor"], Any]) -> Any:
    """Return a copy of `value` with `leaf` applied to each tensor, in exact built-in types.

    torch.load refuses subclasses of these types, such as torch.__version__ or a NumPy float.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [plain(item, leaf) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) and key != TENSOR_KEY for key in value):
            raise TypeError(f"the keys of a checkpoint are strings other than {TENSOR_KEY}")
        return {str.__str__(key): plain(item, leaf) for key, item in value.items()}
    _refuse_unless_tensor(value)
    return leaf(value)


def _refuse_unless_tensor(value: Any) -> None:
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")
    if _dtype_of(value) not in ITEM_SIZES or value.layout is not torch.strided:
        raise TypeError(f"a checkpoint cannot hold a tensor of {value.dtype}, {value.layout}")


def _dtype_of(tensor: "Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return TENSOR_KEY in value or any(_holds_tensor(item) for item in value.values())
    return isinstance(value, list) and any(_holds_tensor(item) for item in value)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _record(name: str, content: Buffer) -> zip_container.Record:
    view, crc = memoryview(content), 0
    for start in range(0, view.nbytes, CHUNK):
        crc = zlib.crc32(view[start : start + CHUNK], crc)
    return zip_container.Record(f"{ROOT}/{name}", view.nbytes, crc)


def _seal(contents: list[tuple[str, Buffer]]) -> Encoded:
    """Place the records one after another, and end the file with the seal."""
    placed: list[zip_container.Placed] = []
    buffers: list[Buffer] = []
    skeleton = xxhash.xxh3_128()
    offset = 0
    for name, content in contents:
        placed.append(zip_container.place(_record(name, content), offset))
        offset = placed[-1].end
        buffers += [placed[-1].header, content]
        skeleton.update(placed[-1].header)
        if not name.startswith("data/"):
            skeleton.update(content)
    end = zip_container.directory(placed, SEAL_PREFIX + bytes(32))[:-32]
    skeleton.update(end)
    return Encoded([*buffers, end, skeleton.hexdigest().encode()], offset + len(end) + 32)


# ---------------------------------------------------------------- reading


def is_ours(file: BinaryIO) -> bool:
    """Return whether the file begins like a checkpoint of this project."""
    name = f"{ROOT}/meta.json".encode()
    file.seek(0)
    head = file.read(zip_container.LOCAL_HEADER.size + len(name))
    return head.startswith(b"PK") and head.endswith(name)


def read_meta(file: BinaryIO) -> dict[str, Any]:
    """Return the entries without tensors from the head of the file; no digest is checked.

    Raises CheckpointError for a file of a different kind or version.
    """
    meta, _ = _read_json(file, 0, "meta.json", _size_of(file))
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"its format is {meta.get('format')!r}, and this version reads only {FORMAT}"
        )
    return meta


def read_index(file: BinaryIO) -> Index:
    """Verify the seal and return the index; no tensor is read.

    Raises CheckpointError if a byte outside the tensors has changed or the file is incomplete.
    """
    size = _size_of(file)
    seal = _read_seal(file, size)
    meta = read_meta(file)
    _, offset = _read(file, 0, "meta.json", size)
    table, offset = _read_json(file, offset, "tensors.json", size)
    _, offset = _read(file, offset, "data.pkl", size)
    try:
        sizes = [(int(length), str(expected)) for length, expected in table["storages"]]
        tree = dict(table["tree"])
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError("tensors.json is damaged") from error
    for name, content in CONSTANT_RECORDS:
        offset = zip_container.place(
            zip_container.Record(f"{ROOT}/{name}", len(content), 0), offset
        ).end
    storages, end = [], size - SEAL_SIZE
    for number, (length, expected) in enumerate(sizes):
        if not 0 <= length <= end - offset:
            raise CheckpointError("tensors.json is damaged")
        placed = zip_container.place(
            zip_container.Record(f"{ROOT}/data/{number}", length, 0), offset
        )
        if placed.end > end:
            raise CheckpointError("tensors.json is damaged")
        storages.append(Storage(placed.data_offset, length, expected))
        offset = placed.end
    if _skeleton_digest(file, storages, size) != seal:
        raise CheckpointError(
            "its metadata or structure is damaged (the digest at its end does not match)"
        )
    tensor_tree.check(tree, [storage.size for storage in storages])
    return Index(meta, tree, storages)


def verify(file: BinaryIO) -> Index:
    """Verify every byte of the file in constant memory, and return the index.

    Raises CheckpointError naming the first damaged tensor.
    """
    index = read_index(file)
    largest = max((storage.size for storage in index.storages), default=0)
    buffer = memoryview(bytearray(min(largest, CHUNK)))
    for number, storage in enumerate(index.storages):
        state = xxhash.xxh3_128()
        file.seek(storage.offset)
        for part in _parts(file, storage.size, buffer):
            state.update(part)
        if state.hexdigest() != storage.digest:
            raise _damaged(index, number)
    return index


def load(file: BinaryIO) -> dict[str, Any]:
    """Return the state in the file.

    Each tensor is verified in the memory that is returned, and no pickle is read. Raises
    CheckpointError if any byte has changed.
    """
    import torch

    index = read_index(file)
    storages: list[Tensor] = []
    for number, storage in enumerate(index.storages):
        raw = torch.empty(storage.size, dtype=torch.uint8)
        view = raw.numpy().data
        file.seek(storage.offset)
        if _read_into(file, view) != storage.size or digest(view) != storage.digest:
            raise _damaged(index, number)
        storages.append(raw)
    tensors: dict[str, Tensor] = {}

    def build(value: Any) -> Any:
        if isinstance(value, list):
            return [build(item) for item in value]
        if not isinstance(value, dict):
            return value
        if TENSOR_KEY not in value:
            return {key: build(item) for key, item in value.items()}
        number, dtype, shape = value[TENSOR_KEY]
        key = f"{number} {dtype} {shape}"  # tied tensors share memory again
        if key not in tensors:
            tensors[key] = storages[number].view(getattr(torch, dtype)).reshape(shape)
        return tensors[key]

    try:
        return {**index.meta, **{key: build(value) for key, value in index.tree.items()}}
    except (RecursionError, RuntimeError) as error:
        raise CheckpointError("tensors.json does not describe the tensors in the file") from error


def tensors(index: Index) -> dict[str, tuple[str, list[int], Storage]]:
    """Return the dtype, shape and storage of each tensor by its dotted name."""
    found = ((tensor_tree.dotted(path), entry) for path, entry in tensor_tree.walk(index.tree))
    return {name: (dtype, shape, index.storages[n]) for name, (n, dtype, shape) in found}


def _damaged(index: Index, number: int) -> CheckpointError:
    return CheckpointError(f"the tensor {tensor_tree.name_of(index.tree, number)} is damaged")


def _size_of(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _read(file: BinaryIO, offset: int, name: str, size: int) -> tuple[bytes, int]:
    try:
        return zip_container.read_record(file, offset, f"{ROOT}/{name}", size)
    except zip_container.ArchiveError as error:
        raise _unreadable(file, f"it is damaged: {error}") from error


def _unreadable(file: BinaryIO, damage: str) -> CheckpointError:
    advice = "pass a file that `python -m gpt2ckpt.checkpoints list` shows"
    return CheckpointError(damage if is_ours(file) else f"{FOREIGN}: {advice}")


def _read_json(file: BinaryIO, offset: int, name: str, size: int) -> tuple[dict[str, Any], int]:
    content, end = _read(file, offset, name, size)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is damaged") from error
    if not isinstance(value, dict) or nests_beyond(value, MOST_LEVELS):
        raise CheckpointError(f"{name} is damaged")
    return value, end


def nests_beyond(value: Any, levels: int) -> bool:
    """Return whether containers are nested deeper than `levels`, without recursion."""
    layer = [value]
    for _ in range(levels):
        items = (item.values() if isinstance(item, dict) else item for item in layer)
        layer = [inner for item in items for inner in item if isinstance(inner, dict | list)]
    return bool(layer)


def _read_seal(file: BinaryIO, size: int) -> str:
    file.seek(max(0, size - SEAL_SIZE))
    comment = file.read(SEAL_SIZE)
    if not comment.startswith(SEAL_PREFIX):
        raise _unreadable(file, "it is incomplete (there is no digest at its end)")
    return comment.removeprefix(SEAL_PREFIX).decode("latin-1")


def _skeleton_digest(file: BinaryIO, storages: list[Storage], size: int) -> str:
    state = xxhash.xxh3_128()
    position = 0
    for start, end in [*((s.offset, s.offset + s.size) for s in storages), (size - 32, size)]:
        if start - position > LARGEST_GAP:
            raise CheckpointError("it is damaged: it has a gap")
        file.seek(position)
        state.update(file.read(start - position))
        position = end
    return state.hexdigest()


def _parts(file: BinaryIO, size: int, buffer: memoryview) -> Iterator[memoryview]:
    while size > 0:
        part = buffer[: min(size, len(buffer))]
        count = _read_into(file, part)
        if count != len(part):
            raise CheckpointError("the file ends too early")
        yield part
        size -= count


def _read_into(file: BinaryIO, view: memoryview) -> int:
    """Fill `view`, and return the number of bytes read.

    One call of readinto reads at most 2 GiB on Linux.
    """
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            break
        done += count
    return done
