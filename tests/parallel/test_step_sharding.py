"""Each block of a step is trained once for any number of ranks, or the start is refused."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpt2ckpt.errors import ConfigError
from gpt2ckpt.parallel.step_sharding import MicroBatch, round_robin, shard_step

SIZES = st.integers(1, 8)


@given(size=SIZES, batch_size=st.integers(1, 12), grad_accum=st.integers(1, 12))
def test_shards_of_all_ranks_cover_the_step(size: int, batch_size: int, grad_accum: int) -> None:
    assume(grad_accum % size == 0 or batch_size % size == 0)
    shares = [shard_step(rank, size, batch_size, grad_accum) for rank in range(size)]
    blocks = [p.offset + i for share in shares for p in share for i in range(p.count)]
    assert sorted(blocks) == list(range(batch_size * grad_accum))
    assert len({tuple(part.count for part in share) for share in shares}) == 1  # a mean of means


def test_single_rank_trains_micro_batches_in_order() -> None:
    assert shard_step(0, 1, 3, 2) == (MicroBatch(0, 3), MicroBatch(3, 3))


def test_micro_batches_are_distributed_before_they_are_split() -> None:
    assert shard_step(1, 2, 4, 2) == (MicroBatch(4, 4),)
    assert shard_step(1, 2, 4, 3) == (MicroBatch(2, 2), MicroBatch(6, 2), MicroBatch(10, 2))


@pytest.mark.parametrize(
    ("size", "batch_size", "grad_accum", "advice"),
    [
        (4, 6, 6, "trainer.batch_size=9 with trainer.grad_accum=4 trains the same 36 blocks"),
        (2, 3, 1, "make trainer.batch_size or trainer.grad_accum a multiple of 2"),
    ],
)
def test_uneven_batch_is_refused_with_one_that_fits(
    size: int, batch_size: int, grad_accum: int, advice: str
) -> None:
    with pytest.raises(ConfigError, match=advice):
        shard_step(0, size, batch_size, grad_accum)


@given(items=st.lists(st.integers(), max_size=20), size=SIZES)
def test_round_robin_yields_each_item_once_and_equal_counts(items: list[int], size: int) -> None:
    hands = [list(round_robin(items, rank, size)) for rank in range(size)]
    assert len({len(hand) for hand in hands}) == 1
    rounds = zip(*hands, strict=True)
    assert [item for round_ in rounds for item, counts in round_ if counts] == items
