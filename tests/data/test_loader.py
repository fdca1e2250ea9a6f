"""The loader returns batches by position and validation blocks in order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2ckpt.data.loader import BlockLoader, validation
from gpt2ckpt.data.order import block_of
from gpt2ckpt.data.tokens import Piece, TokenStream


def _stream(tokens: int, cut: int = 0) -> TokenStream:
    """Return a stream of two pieces in which token i is i, so that a batch shows its position."""
    whole = np.arange(tokens, dtype=np.uint16)
    return TokenStream([Piece("a", whole[:cut]), Piece("b", whole[cut:])], 50257)


def test_batch_contains_the_blocks_of_its_positions() -> None:
    loader = BlockLoader(_stream(100, cut=37), block_size=8, seed=1)
    assert loader.n_blocks == 12
    inputs, targets = loader.batch(20, 8)  # spans the ends of the first and the second epoch
    assert inputs.shape == targets.shape == (8, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous() and targets.is_contiguous()
    blocks = block_of(np.arange(20, 28), 12, 1)
    expected = torch.from_numpy(blocks * 8)[:, None] + torch.arange(8)
    assert torch.equal(inputs, expected)
    assert torch.equal(targets, expected + 1)


def test_epoch_visits_every_block_once_and_drops_less_than_one_block() -> None:
    loader = BlockLoader(_stream(100), block_size=8, seed=3)
    for epoch in range(3):
        inputs, targets = loader.batch(epoch * 12, 12)
        assert sorted(inputs.flatten().tolist()) == list(range(96))
        assert sorted(targets.flatten().tolist()) == list(range(1, 97))


@settings(max_examples=40, deadline=None)
@given(start=st.integers(0, 1000), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_data_order_does_not_depend_on_the_batch_size(start: int, sizes: list[int]) -> None:
    loader = BlockLoader(_stream(200), block_size=5, seed=9)
    whole = loader.batch(start, sum(sizes))
    position = start
    parts = []
    for size in sizes:
        parts.append(loader.batch(position, size))
        position += size
    assert torch.equal(torch.cat([part[0] for part in parts]), whole[0])
    assert torch.equal(torch.cat([part[1] for part in parts]), whole[1])


def test_seeds_give_different_orders() -> None:
    one, two = (BlockLoader(_stream(1000), 4, seed).batch(0, 50)[0] for seed in (1, 2))
    assert not torch.equal(one, two)


def test_stream_shorter_than_a_block_is_refused() -> None:
    assert BlockLoader(_stream(9), 8, 0).n_blocks == 1
    with pytest.raises(ValueError, match="8 tokens contain no block"):
        BlockLoader(_stream(8), 8, 0)


@pytest.mark.parametrize(
    ("limit", "sizes"), [(None, [5, 5, 2]), (7, [5, 2]), (100, [5, 5, 2]), (5, [5]), (0, [])]
)
def test_validation_yields_every_block_in_order(limit: int | None, sizes: list[int]) -> None:
    batches = list(validation(_stream(100, cut=50), block_size=8, batch_size=5, limit=limit))
    assert [len(inputs) for inputs, _ in batches] == sizes
    seen = [token for inputs, _ in batches for token in inputs.flatten().tolist()]
    assert seen == list(range(8 * sum(sizes)))
    for inputs, targets in batches:
        assert torch.equal(targets, inputs + 1)
