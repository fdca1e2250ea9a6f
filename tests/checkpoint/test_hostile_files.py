"""Malicious checkpoints: one error message, no code executed, no memory for false sizes."""

import json
import os
import pickle
import tracemalloc
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import forged, is_detected, records_of, sealed, small_state, to_bytes

from gpt2ckpt.checkpoint import format, reading, zip_container
from gpt2ckpt.errors import CheckpointError

SMALL = to_bytes(small_state())
DIGEST = "0" * 32


class Bomb:
    """Unpickling it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_bomb_in_data_pkl_is_never_unpickled(tmp_path: Path) -> None:
    crater = tmp_path / "crater"
    bomb = pickle.dumps(Bomb(crater), protocol=2)
    data = sealed({**records_of(SMALL), "data.pkl": bomb})
    assert format.load(BytesIO(data))["step"] == 7
    format.verify(BytesIO(data))
    format.read_meta(BytesIO(data))
    assert not crater.exists()
    pickle.loads(bomb)
    assert crater.exists(), "the bomb was a dud: the test proves nothing"


def test_a_torch_file_with_a_bomb_is_refused(tmp_path: Path) -> None:
    path, crater = tmp_path / "latest.pt", tmp_path / "crater"
    torch.save({"format": format.FORMAT, "step": 1, "model": Bomb(crater)}, path)
    for read in (reading.load, reading.check, reading.read_meta):
        with pytest.raises(CheckpointError, match=r"latest\.pt cannot be used: it is"):
            read(path)
    assert not crater.exists()


def test_pickle_in_json_stays_text(tmp_path: Path) -> None:
    text = pickle.dumps(Bomb(tmp_path / "crater"), protocol=0).decode("latin-1")
    meta = json.dumps({"format": format.FORMAT, "step": 7, "config": text}).encode()
    assert format.load(BytesIO(sealed({**records_of(SMALL), "meta.json": meta})))["config"] == text
    assert not (tmp_path / "crater").exists()


def test_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    plain_zip = tmp_path / "plain.zip"
    with zipfile.ZipFile(plain_zip, "w") as archive:
        archive.writestr("readme.txt", "hello")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("PK is not enough")
    (tmp_path / "folder.pt").mkdir()
    torch.save({"a": torch.ones(2)}, tmp_path / "torch.pt")
    names = ("plain.zip", "empty.pt", "text.pt", "folder.pt", "torch.pt", "missing.pt")
    for path in [tmp_path / name for name in names]:
        assert not reading.is_checkpoint(path)
        for read in (reading.load, reading.check, reading.read_meta):
            with pytest.raises(CheckpointError, match=path.name) as caught:
                read(path)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["meta.json", "tensors.json", "data.pkl", "data/0"])
def test_a_sealed_file_without_a_record_is_refused(missing: str) -> None:
    records = records_of(SMALL)
    del records[missing]
    assert is_detected(sealed(records))


@pytest.mark.parametrize(
    "size",
    [-1, -(2**63), 2**31, 2**40, 2**63, 2**64, 2**70, 1e308, float("inf"), float("nan"), None],
    ids=str,
)
def test_wrong_sizes_are_refused_before_memory_is_allocated(
    size: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = forged(SMALL, storages=[[size, DIGEST]] * 4)
    taken = []
    real_empty = torch.empty

    def recording_empty(count: int, **options: Any) -> torch.Tensor:
        taken.append(count)
        return real_empty(count, **options)

    monkeypatch.setattr(torch, "empty", recording_empty)
    tracemalloc.start()
    try:
        assert is_detected(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert taken == []


def test_a_tensor_that_would_cover_the_end_of_the_file_is_refused() -> None:
    for reach in range(1, 400, 7):
        storages = json.loads(records_of(SMALL)["tensors.json"])["storages"]
        storages[-1][0] += reach
        assert is_detected(forged(SMALL, storages=storages))


def test_allocated_memory_is_bounded_by_file_size(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    real_empty = torch.empty

    def recording_empty(count: int, **options: Any) -> torch.Tensor:
        taken.append(count)
        return real_empty(count, **options)

    monkeypatch.setattr(torch, "empty", recording_empty)
    format.load(BytesIO(SMALL))
    assert 0 < sum(taken) < len(SMALL)


@pytest.mark.parametrize(
    "storages", [None, 1, "x", {}, [1], [[1]], [["x", "y"]], [[1, 2, 3]], [None]], ids=str
)
def test_a_table_of_another_form_is_refused(storages: Any) -> None:
    assert is_detected(forged(SMALL, storages=storages))


@pytest.mark.parametrize(
    "description",
    [
        *([0, "float32", [2, 4]], [0, "float32", [6, 2]], [0, "float64", [2, 3]]),
        *([0, "float31", [2, 3]], [0, "Tensor", [6]], [0, "__class__", [6]], [0, None, [6]]),
        *([0, "float32", [-1]], [0, "float32", [-2, -3]], [0, "float32", [2**63, 0]]),
        *([0, "float32", [6.0]], [0, "float32", [True, 6]], [0, "float32", "6"]),
        *([0, "float32", 6], [0, "float32", None], [0, ["float32"], [6]]),
        *([-1, "float32", [0]], [99, "float32", [6]], ["0", "float32", [6]], [None] * 3),
        *([True, "float32", [3]], [0.0, "float32", [6]], [], [0], 7, None, "abc", {"a": 1}),
    ],
    ids=str,
)
def test_descriptions_that_do_not_fit_are_refused(description: Any) -> None:
    data = forged(SMALL, tree={"model": {"wte": {"$tensor": description}}})
    assert is_detected(data)
    with pytest.raises(CheckpointError, match=r"does not describe the tensor model\.wte"):
        format.verify(BytesIO(data))


@pytest.mark.parametrize("depth", [90, 400, 5_000, 200_000])
def test_deep_nesting_is_loaded_or_refused(depth: int) -> None:
    records = records_of(SMALL)
    deep = "[" * depth + "]" * depth
    meta = f'{{"format":"{format.FORMAT}","step":7,"deep":{deep}}}'.encode()
    table = records["tensors.json"].replace(b'"tree":{', f'"tree":{{"deep":{deep},'.encode())
    for name, content in (("meta.json", meta), ("tensors.json", table)):
        data = BytesIO(sealed({**records, name: content}))
        try:
            format.load(data)
        except CheckpointError:
            assert depth > 90, "a state may well nest this deeply"
        else:
            assert depth == 90, "what reads it calls itself for each level"


def test_damaged_tensor_in_forged_tree_gives_error() -> None:
    """The message names the tensor; that must not fail on what else is in the tree."""
    tree = {"odd": [[], {}, "x", None, [1, {"$tensor": [0, "float32", [6]]}]]}
    data = forged(SMALL, tree=tree, storages=[[24, DIGEST]])
    for read in (format.load, format.verify):
        with pytest.raises(CheckpointError):
            read(BytesIO(data))


@pytest.mark.parametrize("content", [b"", b"[]", b"1", b"{", b"\xff\xfe", b'{"a":' + b"9" * 5000])
def test_records_other_than_json_objects_are_refused(content: bytes) -> None:
    for name in ("meta.json", "tensors.json"):
        assert is_detected(sealed({**records_of(SMALL), name: content}))


def test_a_record_larger_than_any_of_ours_is_not_read(tmp_path: Path) -> None:
    """A file with a hole in it takes no disk; read at once, it would take all memory."""
    path, size = tmp_path / "latest.pt", 3 << 30
    placed = zip_container.place(zip_container.Record(f"{format.ROOT}/meta.json", size, 0), 0)
    with path.open("wb") as file:
        file.write(placed.header)
        file.truncate(placed.end + 1000)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="67,108,864 are the most"):
            reading.read_meta(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_tensor_of_very_many_dimensions_is_refused_at_once() -> None:
    """Their product would have millions of digits."""
    tree = {"model": {"wte": {"$tensor": [0, "float32", [2**62] * 200_000]}}}
    assert is_detected(forged(SMALL, tree=tree))


def test_a_hole_before_the_end_is_refused_unread(tmp_path: Path) -> None:
    """A file of a tebibyte that takes no disk: the bytes outside of tensors are read at once."""
    path = tmp_path / "hole.pt"
    with path.open("wb") as file:
        file.write(SMALL[: -format.SEAL_SIZE])
        file.seek(1 << 40)
        file.write(SMALL[-format.SEAL_SIZE :])
    for read in (reading.load, reading.check):
        with pytest.raises(CheckpointError, match="it is damaged: it has a gap"):
            read(path)
