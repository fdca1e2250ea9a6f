"""A reader written from docs/format.md alone agrees with gpt2ckpt on every file."""

import ast
import random
from pathlib import Path
from typing import Any

import independent_reader
import pytest
import torch
from checkpoint_helpers import forged, regions_of, small_state, tensors_state, to_bytes

from gpt2ckpt.checkpoint import format, reading
from gpt2ckpt.errors import CheckpointError


def ours_accepts(path: Path) -> bool:
    try:
        reading.check(path)
    except CheckpointError:
        return False
    return True


def theirs_accepts(path: Path) -> bool:
    try:
        independent_reader.read(path)
    except Exception:  # whatever zipfile and json say to a damaged file
        return False
    return True


def as_theirs(value: Any, tensors: list[bytes]) -> Any:
    """Their view of a tensor is its place: replaced by its bytes, as ours is below."""
    if isinstance(value, dict) and "$tensor" in value:
        number, dtype, shape = value["$tensor"]
        return dtype, shape, tensors[number]
    if isinstance(value, dict):
        return {key: as_theirs(item, tensors) for key, item in value.items()}
    return [as_theirs(item, tensors) for item in value] if isinstance(value, list) else value


def as_ours(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        content = bytes(value.reshape(-1).view(torch.uint8).numpy().data)
        return str(value.dtype).removeprefix("torch."), list(value.shape), content
    if isinstance(value, dict):
        return {key: as_ours(item) for key, item in value.items()}
    return [as_ours(item) for item in value] if isinstance(value, list) else value


def test_it_is_short_and_independent() -> None:
    source = Path(independent_reader.__file__).read_text()
    assert len(source.splitlines()) < 60
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    standard = {"json", "math", "dataclasses", "pathlib", "typing", "zipfile"}
    assert imported == {*standard, "xxhash"}


@pytest.mark.parametrize("state", [small_state(), tensors_state(1, 64)], ids=["small", "large"])
def test_both_read_the_same(tmp_path: Path, state: dict[str, Any]) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(to_bytes(state))
    theirs = independent_reader.read(path)
    assert as_theirs(theirs.state, theirs.tensors) == as_ours(reading.load(path)) == as_ours(state)


def test_both_refuse_the_same(tmp_path: Path) -> None:
    path, data, chance = tmp_path / "state.pt", to_bytes(small_state()), random.Random(8)
    damaged = [data[:-1], data + b"\0", b"", data[: len(data) // 2], data[1:]]
    for region in regions_of(data):
        for _ in range(min(12, region.end - region.start)):
            position = chance.randrange(region.start, region.end)
            byte = data[position] ^ (1 << chance.randrange(8))
            damaged.append(data[:position] + bytes([byte]) + data[position + 1 :])
    damaged.append(forged(data, tree={"wte": {"$tensor": [0, "float32", [7]]}}))
    damaged.append(forged(data, tree={"wte": {"$tensor": [0, "float33", [6]]}}))
    damaged.append(forged(data, storages=[[24, "0" * 32]]))
    good = [data, to_bytes(small_state(8)), forged(data), to_bytes({"format": format.FORMAT})]
    for content in damaged + good:
        path.write_bytes(content)
        assert ours_accepts(path) == theirs_accepts(path) == (content in good)
