"""Small states and their files, and helpers that take files apart and assemble damaged ones."""

import json
import random
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from gpt2ckpt.checkpoint import format, zip_container
from gpt2ckpt.checkpoint.reading import check, load
from gpt2ckpt.checkpoint.retention import Retention, SaveRequest
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError

NOON = datetime(2025, 11, 6, 12, 0, 0)


def small_state(step: int = 7) -> dict[str, Any]:
    """A state with everything that a file can have in it, in a few bytes."""
    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3) + step
    return {
        "format": format.FORMAT,
        "step": step,
        "loss": 0.1,
        "model": {"wte": weight, "head": weight, "bias": -weight[0]},
        "rng": ["MT", torch.tensor(step), torch.empty(0)],
    }


def tensors_state(step: int, kilobytes: int) -> dict[str, Any]:
    """A state with two tensors of random bytes, `kilobytes` in all."""
    torch.manual_seed(step)
    first, second = torch.randint(0, 256, (2, kilobytes * 512), dtype=torch.uint8)
    return {"format": format.FORMAT, "step": step, "first": first, "second": second.clone()}


def to_bytes(state: dict[str, Any]) -> bytes:
    return b"".join(format.encode(state).buffers)


def records_of(data: bytes) -> dict[str, bytes]:
    """The records of a file by name without the root, in their order."""
    with ZipFile(BytesIO(data)) as file:
        return {name.partition("/")[2]: file.read(name) for name in file.namelist()}


def sealed(records: Mapping[str, bytes]) -> bytes:
    """A file of these records with CRCs and a seal that fit them, whatever is in them."""
    return b"".join(format._seal(list(records.items())).buffers)


def forged(data: bytes, **changes: Any) -> bytes:
    """`data` with its tensors.json changed by `changes`, and sealed again."""
    records = records_of(data)
    table = {**json.loads(records["tensors.json"]), **changes}
    return sealed({**records, "tensors.json": json.dumps(table).encode()})


@dataclass(frozen=True)
class Region:
    """A stretch of a file and what it is there for."""

    kind: str
    start: int
    end: int


def regions_of(data: bytes) -> list[Region]:
    """The whole file as regions, each beginning where the one before it ends."""
    regions = []
    with ZipFile(BytesIO(data)) as file:
        for info in file.infolist():
            name = info.filename.partition("/")[2]
            kind = "tensor" if name.startswith("data/") else name
            sizes = data[info.header_offset + 26 : info.header_offset + 30]
            name_end = info.header_offset + 30 + int.from_bytes(sizes[:2], "little")
            start = name_end + int.from_bytes(sizes[2:], "little")
            regions.append(Region("zip header", info.header_offset, name_end))
            regions.append(Region("padding", name_end, start))
            regions.append(Region(kind, start, start + info.file_size))
        directory = regions[-1].end
    seal = len(data) - format.SEAL_SIZE
    end_record = data.rindex(b"PK\x05\x06")
    regions.append(Region("directory", directory, end_record))
    regions.append(Region("end record", end_record, seal))
    return [*regions, Region("seal", seal, len(data))]


def content_offset(data: bytes, name: str) -> int:
    """Where the bytes of a record begin."""
    with ZipFile(BytesIO(data)) as file:
        offset = file.getinfo(f"{format.ROOT}/{name}").header_offset
    sizes = zip_container.LOCAL_HEADER.unpack_from(data, offset)[-2:]
    return offset + zip_container.LOCAL_HEADER.size + sum(sizes)


def is_detected(data: bytes) -> bool:
    """Whether both `load` and `verify` refuse the bytes with a CheckpointError."""
    refusals = 0
    for read in (format.load, format.verify):
        try:
            read(BytesIO(data))
        except CheckpointError:
            refusals += 1
    assert refusals in (0, 2), "load and verify disagree"
    return refusals == 2


def flip_random_byte(path: Path, seed: int) -> None:
    """Damage a file in place, as a disk does: every name of it is damaged."""
    chance = random.Random(seed)
    with path.open("r+b") as file:
        position = chance.randrange(file.seek(0, 2))
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << chance.randrange(8))]))


def request(step: int, **reasons: Any) -> SaveRequest:
    return SaveRequest(step, NOON, **(reasons or {"regular": True}))


def put(folder: Path, step: int, keep: int = 2, **reasons: Any) -> Path:
    encoded = format.encode(small_state(step))
    return Store(folder).put(encoded, request(step, **reasons), Retention(keep, keep))


def step_of(path: Path) -> int:
    """The step of a file that is valid in every byte."""
    check(path)
    return int(load(path)["step"])


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let writes beyond `size` bytes of a file fail for real (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
