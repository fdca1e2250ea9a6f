"""A second reader, written from docs/format.md alone: it shares no code with gpt2ckpt."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import xxhash

SEAL = b"gpt2ckpt seal xxh3_128 "
SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}
SIZES |= {"int16": 2, "int8": 1, "uint8": 1, "bool": 1}


@dataclass(frozen=True)
class Contents:
    state: dict[str, Any]  # tensors as {"$tensor": [number, dtype, shape]}
    tensors: list[bytes]


def read(path: Path) -> Contents:
    """The contents of a whole file. Raises some exception for any other."""
    data, position, covered = path.read_bytes(), 0, xxhash.xxh3_128()
    with ZipFile(path) as archive:
        meta = json.loads(archive.read("gpt2ckpt/meta.json"))
        if meta["format"] != "gpt2ckpt/1":
            raise ValueError("another version")
        table = json.loads(archive.read("gpt2ckpt/tensors.json"))
        tensors = []
        for number, (size, digest) in enumerate(table["storages"]):
            header = archive.getinfo(f"gpt2ckpt/data/{number}").header_offset
            lengths = (data[header + 26 : header + 28], data[header + 28 : header + 30])
            start = header + 30 + sum(int.from_bytes(length, "little") for length in lengths)
            covered.update(data[position:start])
            position = start + size
            tensors.append(data[start:position])
            if len(tensors[-1]) != size or xxhash.xxh3_128_hexdigest(tensors[-1]) != digest:
                raise ValueError(f"data/{number} is damaged")
    covered.update(data[position:-32])
    if data[-55:-32] != SEAL or covered.hexdigest().encode() != data[-32:]:
        raise ValueError("the seal does not match")
    check_shapes(table["tree"], tensors)
    return Contents({**meta, **table["tree"]}, tensors)


def check_shapes(value: Any, tensors: list[bytes]) -> None:
    if isinstance(value, dict) and "$tensor" in value:
        number, dtype, shape = value["$tensor"]
        if math.prod(shape) * SIZES[dtype] != len(tensors[number]):
            raise ValueError(f"data/{number} has another shape")
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            check_shapes(item, tensors)
