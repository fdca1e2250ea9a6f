"""No changed, missing or added byte of a file goes unnoticed, wherever it is."""

from collections import Counter
from io import BytesIO

import pytest
import torch
from checkpoint_helpers import (
    content_offset,
    is_detected,
    regions_of,
    small_state,
    tensors_state,
    to_bytes,
)

from gpt2ckpt.checkpoint import format
from gpt2ckpt.errors import CheckpointError

PAGE = 4096
SMALL = to_bytes(small_state())
LARGE = to_bytes(tensors_state(3, kilobytes=64))
KINDS = {
    *("zip header", "padding", "meta.json", "tensors.json", "data.pkl", "byteorder", "version"),
    *("tensor", "directory", "end record", "seal"),
}


def replaced(data: bytes, position: int, part: bytes) -> bytes:
    return data[:position] + part + data[position + len(part) :]


def test_the_regions_are_the_whole_file() -> None:
    regions = regions_of(SMALL)
    edges = [region.start for region in regions] + [len(SMALL)]
    assert edges == [0] + [region.end for region in regions]
    assert {region.kind for region in regions if region.end > region.start} == KINDS


@pytest.mark.parametrize("bits", [*(1 << bit for bit in range(8)), 0xFF], ids=hex)
def test_every_flipped_byte_is_detected(bits: int) -> None:
    assert not is_detected(SMALL)
    tried, missed = Counter[str](), Counter[str]()
    for region in regions_of(SMALL):
        for position in range(region.start, region.end):
            tried[region.kind] += 1
            damaged = replaced(SMALL, position, bytes([SMALL[position] ^ bits]))
            missed[region.kind] += not is_detected(damaged)
    assert +missed == Counter(), f"undetected, of {dict(tried)}"
    assert set(tried) == KINDS
    assert tried.total() == len(SMALL)


def test_every_truncation_is_detected() -> None:
    assert [size for size in range(len(SMALL)) if not is_detected(SMALL[:size])] == []


@pytest.mark.parametrize(
    "more",
    [b"\x00", b"\n", bytes(PAGE), SMALL[-format.SEAL_SIZE :], SMALL],
    ids=["byte", "newline", "page", "second seal", "second file"],
)
def test_appended_bytes_are_detected(more: bytes) -> None:
    assert is_detected(SMALL + more)
    assert is_detected(more + SMALL)


def test_missing_or_repeated_bytes_are_detected() -> None:
    for position in range(0, len(SMALL), 97):
        assert is_detected(SMALL[:position] + SMALL[position + 1 :])
        assert is_detected(SMALL[:position] + SMALL[position : position + 64] + SMALL[position:])


def test_every_zeroed_page_is_detected() -> None:
    for start in range(0, len(LARGE), PAGE):
        page = bytes(min(PAGE, len(LARGE) - start))
        assert is_detected(replaced(LARGE, start, page)), f"page at {start}"


def test_swapped_tensors_within_a_file_are_detected() -> None:
    first, second = content_offset(LARGE, "data/0"), content_offset(LARGE, "data/1")
    size = 32 << 10
    a, b = LARGE[first : first + size], LARGE[second : second + size]
    assert is_detected(replaced(replaced(LARGE, first, b), second, a))
    assert not is_detected(replaced(replaced(LARGE, first, a), second, b))


def test_tensors_of_another_step_are_detected() -> None:
    other = to_bytes(tensors_state(4, kilobytes=64))
    assert len(other) == len(LARGE)
    start = content_offset(LARGE, "data/0")
    end = content_offset(LARGE, "data/1") + (32 << 10)
    assert is_detected(LARGE[:start] + other[start:end] + LARGE[end:])
    half = len(LARGE) // 2
    assert is_detected(LARGE[:half] + other[half:])
    assert is_detected(LARGE[: -format.SEAL_SIZE] + other[-format.SEAL_SIZE :])


def test_swapped_pages_are_detected() -> None:
    start = content_offset(LARGE, "data/0")
    page = LARGE[start : start + PAGE]
    assert is_detected(replaced(LARGE, start + 2 * PAGE, page))


def test_error_names_damaged_tensor() -> None:
    position = content_offset(SMALL, "data/1")
    damaged = replaced(SMALL, position, bytes([SMALL[position] ^ 4]))
    for read in (format.load, format.verify):
        with pytest.raises(CheckpointError, match=r"the tensor model\.bias is damaged"):
            read(BytesIO(damaged))


def test_torch_load_does_not_detect_damage() -> None:
    """Why the digests are there: the same damage goes through plain torch.load."""
    position = content_offset(SMALL, "data/0")
    damaged = replaced(SMALL, position, bytes([SMALL[position] ^ 4]))
    loaded = torch.load(BytesIO(damaged), weights_only=True)
    assert not torch.equal(loaded["model"]["wte"], small_state()["model"]["wte"])
    assert is_detected(damaged)
