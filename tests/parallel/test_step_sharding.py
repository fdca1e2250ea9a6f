"""Every block of a step is trained once, whatever the number of ranks; or the start is refused."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpt2ckpt.errors import ConfigError
from gpt2ckpt.parallel.step_sharding import MicroBatch, round_robin, shard_step

SIZES = st.integers(1, 8)


@given(size=SIZES, batch_size=st.integers(1, 12), grad_accum=st.integers(1, 12))
def test_the_shares_of_all_ranks_are_the_step(size: int, batch_size: int, grad_accum: int) -> None:
    assume(grad_accum % size == 0 or batch_size % size == 0)
    shares = [shard_step(rank, size, batch_size, grad_accum) for rank in range(size)]
    blocks = [p.offset + i for share in shares for p in share for i in range(p.count)]
    assert sorted(blocks) == list(range(batch_size * grad_accum))
    assert len({tuple(part.count for part in share) for share in shares}) == 1  # a mean of means


def test_one_rank_trains_the_micro_batches_in_order() -> None:
    assert shard_step(0, 1, 3, 2) == (MicroBatch(0, 3), MicroBatch(3, 3))


def test_whole_micro_batches_are_dealt_before_any_is_cut() -> None:
    assert shard_step(1, 2, 4, 2) == (MicroBatch(4, 4),)
    assert shard_step(1, 2, 4, 3) == (MicroBatch(2, 2), MicroBatch(6, 2), MicroBatch(10, 2))


@pytest.mark.parametrize(
    ("size", "batch_size", "grad_accum", "advice"),
    [
        (4, 6, 6, "trainer.batch_size=9 with trainer.grad_accum=4 trains the same 36 blocks"),
        (2, 3, 1, "make trainer.batch_size or trainer.grad_accum a multiple of 2"),
    ],
)
def test_a_batch_that_does_not_come_out_even_is_refused_with_one_that_does(
    size: int, batch_size: int, grad_accum: int, advice: str
) -> None:
    with pytest.raises(ConfigError, match=advice):
        shard_step(0, size, batch_size, grad_accum)


@given(items=st.lists(st.integers(), max_size=20), size=SIZES)
def test_every_item_is_dealt_once_and_every_rank_gets_as_many(items: list[int], size: int) -> None:
    hands = [list(round_robin(items, rank, size)) for rank in range(size)]
    assert len({len(hand) for hand in hands}) == 1
    rounds = zip(*hands, strict=True)
    assert [item for round_ in rounds for item, counts in round_ if counts] == items
