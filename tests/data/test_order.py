"""The data order is a permutation, is mixed, and never changes."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2ckpt.data.order import block_of

GOLDEN_10 = [9, 3, 7, 2, 8, 5, 6, 4, 0, 1]
GOLDEN_10_EPOCH_1 = [7, 9, 6, 1, 3, 0, 8, 2, 5, 4]
GOLDEN_1000 = [821, 342, 623, 141, 469, 194]
GOLDEN_FAR = [4570628, 1078643, 314928, 2845569, 6508147]
GOLDEN_HUGE = [8232969527, 3423083570, 1463577078]


def _epoch(n_blocks: int, seed: int, epoch: int) -> list[int]:
    positions = np.arange(epoch * n_blocks, (epoch + 1) * n_blocks)
    return block_of(positions, n_blocks, seed).tolist()


@settings(max_examples=60, deadline=None)
@given(
    n_blocks=st.integers(1, 3000), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 2**20)
)
def test_every_epoch_visits_every_block_once(n_blocks: int, seed: int, epoch: int) -> None:
    assert sorted(_epoch(n_blocks, seed, epoch)) == list(range(n_blocks))


@pytest.mark.parametrize("n_blocks", range(1, 70))
def test_small_corpora_are_permuted_too(n_blocks: int) -> None:
    for epoch in range(3):
        assert sorted(_epoch(n_blocks, 5, epoch)) == list(range(n_blocks))


@settings(max_examples=60, deadline=None)
@given(
    n_blocks=st.integers(1, 2**50),
    seed=st.integers(0, 2**32),
    positions=st.lists(st.integers(0, 2**60), min_size=1, max_size=20),
)
def test_block_depends_only_on_its_position(n_blocks: int, seed: int, positions: list[int]) -> None:
    together = block_of(np.array(positions), n_blocks, seed)
    alone = [int(block_of(np.array([position]), n_blocks, seed)[0]) for position in positions]
    assert together.tolist() == alone
    assert together.dtype == np.int64
    assert together.min() >= 0 and together.max() < n_blocks


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = {tuple(_epoch(50, seed, epoch)) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400
    assert tuple(range(50)) not in orders


def test_order_equals_recorded_values() -> None:
    # If these values change, no existing run can be resumed exactly.
    assert block_of(np.arange(10), 10, 1337).tolist() == GOLDEN_10
    assert block_of(np.arange(10, 20), 10, 1337).tolist() == GOLDEN_10_EPOCH_1
    assert block_of(np.arange(6), 1000, 0).tolist() == GOLDEN_1000
    far = np.array([0, 1, 10**7 - 1, 10**7, 3 * 10**7 + 5])
    assert block_of(far, 9_765_625, 1337).tolist() == GOLDEN_FAR
    assert block_of(np.array([0, 1, 2**40]), 2**33 + 7, -1).tolist() == GOLDEN_HUGE


@pytest.mark.parametrize("n_blocks", [3, 4, 5, 6])
def test_all_orders_of_a_tiny_corpus_are_equally_likely(n_blocks: int) -> None:
    epochs = 100 * math.factorial(n_blocks)
    orders = block_of(np.arange(n_blocks * epochs), n_blocks, 7).reshape(epochs, n_blocks)
    counts = Counter(map(tuple, orders.tolist()))
    freedom = math.factorial(n_blocks) - 1
    chi_square = sum((count - 100) ** 2 / 100 for count in counts.values())
    chi_square += 100 * (math.factorial(n_blocks) - len(counts))
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


def test_order_of_a_larger_corpus_is_uncorrelated() -> None:
    n_blocks, epochs = 500, 400
    orders = block_of(np.arange(n_blocks * epochs), n_blocks, 3).reshape(epochs, n_blocks)
    unmoved = (orders == np.arange(n_blocks)).sum() / epochs
    in_sequence = (np.diff(orders, axis=1) == 1).sum() / epochs
    as_before = (orders[1:] == orders[:-1]).sum() / (epochs - 1)
    # For random permutations, the mean of each is 1, with a standard deviation of 1 / sqrt(400).
    for figure in (unmoved, in_sequence, as_before):
        assert abs(figure - 1) < 0.3
    counts = np.bincount(orders[:, 0] // 50, minlength=10)
    assert counts.min() > 10  # 40 expected in each tenth


def test_negative_positions_and_empty_corpora_are_refused() -> None:
    with pytest.raises(ValueError, match="positions start at 0"):
        block_of(np.array([3, -1]), 10, 0)
    with pytest.raises(ValueError, match="at least one block"):
        block_of(np.array([0]), 0, 0)
    assert block_of(np.array([], dtype=np.int64), 10, 0).tolist() == []
