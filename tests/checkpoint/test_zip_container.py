"""The zip layout beyond 4 GiB and 65,535 records, in sparse files that take no space."""

import random
import struct
import zlib
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from gpt2ckpt.checkpoint import zip_container
from gpt2ckpt.checkpoint.torch_pickle import pickle_state
from gpt2ckpt.checkpoint.zip_container import ArchiveError, Placed, Record

GIB = 1 << 30
ALIGNMENT = 64  # bytes; docs/format.md
COMMENT = b"the end"


def write_sparse(path: Path, contents: list[tuple[str, bytes | int]]) -> list[Placed]:
    """An archive of these records; one given by its size alone is a hole."""
    placed: list[Placed] = []
    with path.open("wb") as file:
        for name, content in contents:
            size, crc = (content, 0) if isinstance(content, int) else (len(content), 0)
            if isinstance(content, bytes):
                crc = zlib.crc32(content)
            offset = placed[-1].end if placed else 0
            placed.append(zip_container.place(Record(name, size, crc), offset))
            file.seek(offset)
            file.write(placed[-1].header)
            if isinstance(content, bytes):
                file.write(content)
        file.seek(placed[-1].end)
        file.write(zip_container.directory(placed, COMMENT))
    return placed


@pytest.mark.parametrize("size", [(4 << 30) - 2, (4 << 30) - 1, 4 << 30, 5 << 30])
def test_records_around_and_beyond_4_gib(tmp_path: Path, size: int) -> None:
    path = tmp_path / "large.zip"
    placed = write_sparse(path, [("a/first", b"one"), ("a/large", size), ("a/last", b"three")])
    assert path.stat().st_blocks * 512 < 1 << 20, "the test needs a file system with holes"
    with ZipFile(path) as file:
        assert file.comment == COMMENT
        assert [info.file_size for info in file.infolist()] == [3, size, 5]
        assert [info.header_offset for info in file.infolist()] == [p.header_offset for p in placed]
        assert (file.read("a/first"), file.read("a/last")) == (b"one", b"three")
        with file.open("a/large") as large:
            assert large.read(100) == bytes(100)


@pytest.mark.parametrize("count", [65_534, 65_535])
def test_record_counts_around_65535(tmp_path: Path, count: int) -> None:
    path = tmp_path / "many.zip"
    write_sparse(path, [(f"a/{i}", b"x") for i in range(count)])
    with ZipFile(path) as file:
        assert len(file.namelist()) == count
        assert file.read(f"a/{count - 1}") == b"x"
    end = path.read_bytes()[-200:]
    assert struct.unpack_from("<H", end, end.rindex(b"PK\x05\x06") + 10)[0] == min(count, 65_535)
    if count >= 65_535:  # Python counts by itself, other readers believe this number
        assert struct.unpack_from("<Q", end, end.rindex(b"PK\x06\x06") + 32)[0] == count


def test_many_records_behind_a_large_one(tmp_path: Path) -> None:
    path = tmp_path / "both.zip"
    many = [(f"a/{i}", b"y") for i in range(66_000)]
    placed = write_sparse(path, [("a/large", 5 * GIB), *many])
    assert all(p.data_offset % ALIGNMENT == 0 for p in placed)
    with ZipFile(path) as file:
        assert len(file.namelist()) == 66_001
        assert file.getinfo("a/65999").header_offset > 5 * GIB
        assert file.read("a/65999") == b"y"


def test_torch_maps_a_tensor_beyond_4_gib(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    large, small = torch.empty(5 * GIB, dtype=torch.uint8), torch.ones(3)
    pickled = pickle_state({"large": large, "small": small}, lambda t: int(t is small))
    records = [("a/data.pkl", pickled), ("a/byteorder", b"little"), ("a/version", b"3\n")]
    tensors = [("a/data/0", 5 * GIB), ("a/data/1", bytes(small.numpy().data))]
    write_sparse(path, [*records, *tensors])
    loaded = torch.load(path, mmap=True, weights_only=True)
    assert loaded["large"].shape == (5 * GIB,)
    assert loaded["large"][[0, -1]].tolist() == [0, 0]
    assert torch.equal(loaded["small"], small)


def test_data_is_aligned_at_any_offset_and_name() -> None:
    chance = random.Random(5)
    for _ in range(500):
        size = chance.choice([0, 1, 100, (1 << 32) - 1, 1 << 33])
        record = Record("n" * chance.randrange(1, 300), size, 0)
        placed = zip_container.place(record, chance.randrange(1 << 40))
        assert placed.data_offset % ALIGNMENT == 0
        assert placed.data_offset - placed.header_offset == len(placed.header)


def test_read_record_checks_every_field() -> None:
    header = zip_container.place(Record("a/x", 3, 0), 0).header
    data = header + b"abc"
    assert zip_container.read_record(BytesIO(data), 0, "a/x", len(data)) == (b"abc", len(data))
    for offset, name, given in [(0, "a/y", data), (1, "a/x", data), (10**9, "a/x", data)]:
        with pytest.raises(ArchiveError):
            zip_container.read_record(BytesIO(given), offset, name, len(given))
    for size in range(len(data)):
        with pytest.raises(ArchiveError):
            zip_container.read_record(BytesIO(data[:size]), 0, "a/x", size)
    huge = bytearray(data)
    huge[18:26] = b"\xfe\xff\xff\xff" * 2
    with pytest.raises(ArchiveError, match="ends too early"):
        zip_container.read_record(BytesIO(bytes(huge)), 0, "a/x", len(huge))
