"""A state is read back from a file unchanged, by gpt2ckpt and by plain torch.load."""

import enum
import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from checkpoint_helpers import records_of, sealed, small_state, to_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2ckpt.checkpoint import format
from gpt2ckpt.checkpoint.tensor_tree import ITEM_SIZES, TENSOR_KEY
from gpt2ckpt.checkpoint.torch_pickle import STORAGE_TYPES
from gpt2ckpt.errors import CheckpointError


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal in structure, types and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        alike = (a.dtype, a.shape) == (b.dtype, b.shape)
        bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b)]
        return alike and torch.equal(*bits)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return a.hex() == b.hex()
    return bool(a == b)


def back(state: dict[str, Any]) -> dict[str, Any]:
    return format.load(BytesIO(to_bytes(state)))


def with_format(**entries: Any) -> dict[str, Any]:
    return {"format": format.FORMAT, **entries}


def by_key(state: dict[str, Any]) -> dict[str, Any]:
    """The top level in one order: a file keeps the entries without tensors first."""
    return dict(sorted(state.items()))


@pytest.mark.parametrize("dtype", STORAGE_TYPES, ids=str)
def test_every_dtype_returns_bit_for_bit(dtype: torch.dtype) -> None:
    raw = torch.randint(0, 256, (2, 3, 8), dtype=torch.uint8, generator=torch.manual_seed(1))
    tensor = raw.bool() if dtype is torch.bool else raw.view(dtype)
    state = with_format(tensor=tensor, part=tensor[1], scalar=tensor[0, 0, 0].clone())
    assert same(back(state), state)
    assert same(torch.load(BytesIO(to_bytes(state)), weights_only=True), state)


def test_format_and_torch_know_the_same_dtypes() -> None:
    names = {str(dtype).removeprefix("torch."): dtype.itemsize for dtype in STORAGE_TYPES}
    assert names == ITEM_SIZES


def test_special_floats_keep_their_bits() -> None:
    bits = [0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000, 0x80000000, 0x00000001]
    state = with_format(tensor=torch.tensor(bits, dtype=torch.int64).int().view(torch.float32))
    assert same(back(state), state)


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 0, 2), (1, 1, 1)], ids=str)
def test_empty_and_scalar_shapes(shape: tuple[int, ...]) -> None:
    state = with_format(tensor=torch.ones(shape), again=torch.zeros(shape))
    assert same(back(state), state)
    assert same(torch.load(BytesIO(to_bytes(state)), weights_only=True), state)


def test_plain_values_keep_type_and_value() -> None:
    values = [None, True, False, 0, -1, 2**31, 2**63, 2**100, -(2**100), "", "naïve 🙂\n\x00"]
    floats = [0.0, -0.0, 0.1, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, 1 / 3]
    state = with_format(
        values=values, floats=floats, empty=[{}, [], {"": []}], undecodable="\udcff"
    )
    assert same(back(state), state)
    assert math.isnan(back(with_format(loss=math.nan))["loss"])
    assert same(torch.load(BytesIO(to_bytes(state)), weights_only=True), state)


class Reason(enum.StrEnum):
    REGULAR = "regular"


def test_subclasses_become_the_plain_types_that_torch_load_takes() -> None:
    state = with_format(
        version=torch.__version__,  # a subclass of str
        reason=Reason.REGULAR,
        loss=np.float64(0.1),
        model={Reason.REGULAR: torch.nn.Parameter(torch.ones(2))},
    )
    plain = with_format(
        version=str(torch.__version__), reason="regular", loss=0.1, model={"regular": torch.ones(2)}
    )
    assert same(back(state), plain)
    assert same(torch.load(BytesIO(to_bytes(state)), weights_only=True), plain)


def test_tied_tensors_are_stored_once_and_return_as_one() -> None:
    weight = torch.randn(5, 3)
    state = with_format(model={"wte": weight, "head": weight.detach()}, other=[weight.clone()])
    data = to_bytes(state)
    assert [name for name in records_of(data) if name.startswith("data/")] == ["data/0", "data/1"]
    for loaded in (back(state), torch.load(BytesIO(data), weights_only=True)):
        tied, head = loaded["model"]["wte"], loaded["model"]["head"]
        assert tied.data_ptr() == head.data_ptr() != loaded["other"][0].data_ptr()
    ours = back(state)["model"]
    assert ours["wte"] is ours["head"]


def test_the_same_bytes_as_two_types_are_two_records() -> None:
    weight = torch.randn(4)
    state = with_format(weight=weight, bits=weight.view(torch.int32))
    assert same(back(state), state)
    assert same(torch.load(BytesIO(to_bytes(state)), weights_only=True), state)


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_load_reads_the_same(tmp_path: Path, mmap: bool) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(to_bytes(small_state()))
    loaded = torch.load(path, weights_only=True, mmap=mmap)
    assert same(by_key(loaded), by_key(small_state()))
    with path.open("rb") as file:
        assert same(by_key(format.load(file)), by_key(loaded))


def test_it_is_a_sound_zip_archive() -> None:
    with ZipFile(BytesIO(to_bytes(small_state()))) as file:
        assert file.testzip() is None
        assert file.namelist()[:3] == [
            f"gpt2ckpt/{name}" for name in ("meta.json", "tensors.json", "data.pkl")
        ]
        assert json.loads(file.read("gpt2ckpt/meta.json"))["step"] == 7


def test_equal_states_give_equal_bytes() -> None:
    assert to_bytes(small_state()) == to_bytes(small_state())


def test_encode_takes_no_copy_of_a_tensor() -> None:
    weight = torch.zeros(1000)
    buffers = format.encode(with_format(weight=weight)).buffers
    weight += 1
    assert any(bytes(buffer) == weight.numpy().tobytes() for buffer in buffers)


def test_metadata_is_read_without_tensors() -> None:
    data = to_bytes(small_state())
    assert format.read_meta(BytesIO(data)) == {"format": format.FORMAT, "step": 7, "loss": 0.1}
    assert format.is_ours(BytesIO(data))
    assert not format.is_ours(BytesIO(b""))
    index = format.verify(BytesIO(data))
    assert set(index.tree) == {"model", "rng"}


def test_another_version_of_the_format_is_named() -> None:
    records = records_of(to_bytes(small_state()))
    data = sealed({**records, "meta.json": b'{"format":"gpt2ckpt/2","step":7}'})
    with pytest.raises(
        CheckpointError, match=r"'gpt2ckpt/2', and this version reads only gpt2ckpt/1"
    ):
        format.load(BytesIO(data))


@pytest.mark.parametrize(
    "value",
    [
        *({1: 2}, {"a": {2: 3}}, {"$tensor": 1}, [{"b": {None: 1}}]),
        *((1, 2), {1, 2}, b"bytes", object(), 1j, Path("x"), np.ones(2), np.int64(1)),
        *(torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse(), torch.int32),
    ],
    ids=lambda value: type(value).__name__,
)
def test_unsupported_values_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"a checkpoint"):
        format.encode(with_format(value=value))


def test_keys_of_the_top_level_are_strings_too() -> None:
    with pytest.raises(TypeError, match="keys of a checkpoint are strings"):
        format.encode({"format": format.FORMAT, 1: 2})  # type: ignore[dict-item]


@pytest.mark.parametrize("tensor", [torch.ones(4, 4).T[1:], torch.ones(2, device="meta")], ids=str)
def test_a_tensor_elsewhere_or_with_gaps_is_refused(tensor: Tensor) -> None:
    with pytest.raises(ValueError, match="contiguous and on the CPU"):
        format.encode(with_format(value=tensor))


leaves = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    st.lists(st.integers(-128, 127), max_size=4).map(lambda v: torch.tensor(v, dtype=torch.int8)),
)
keys = st.text().filter(lambda key: key != TENSOR_KEY)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(keys, inner), max_leaves=12
)


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(keys, trees, max_size=4))
def test_any_state_returns_as_it_was(entries: dict[str, Any]) -> None:
    state = {**entries, "format": format.FORMAT}
    assert same(by_key(back(state)), by_key(state))
    assert same(torch.load(BytesIO(to_bytes(state)), weights_only=True), state)
