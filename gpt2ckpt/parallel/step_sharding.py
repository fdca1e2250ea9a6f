"""Which blocks of a step, and which batches of an evaluation, are whose. Pure functions."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from gpt2ckpt.errors import ConfigError

Item = TypeVar("Item")


@dataclass(frozen=True)
class MicroBatch:
    """`count` blocks from the `offset`-th of a step on: what one forward pass sees."""

    offset: int
    count: int


StepShard: TypeAlias = tuple[MicroBatch, ...]


def shard_step(rank: int, size: int, batch_size: int, grad_accum: int) -> StepShard:
    """The parts of a step that `rank` of `size` trains; all shares are of equal size.

    Together they are the `batch_size * grad_accum` blocks of the step, each once. Whole
    micro-batches are dealt where their number allows it, else each is cut into equal pieces.

    Raises ConfigError, with what to set, if neither comes out even.
    """
    if grad_accum % size == 0:
        numbers = range(rank, grad_accum, size)
        return tuple(MicroBatch(number * batch_size, batch_size) for number in numbers)
    if batch_size % size == 0:
        piece = batch_size // size
        starts = range(0, batch_size * grad_accum, batch_size)
        return tuple(MicroBatch(start + rank * piece, piece) for start in starts)
    blocks = batch_size * grad_accum
    how = (
        f"trainer.batch_size={blocks // size} with trainer.grad_accum={size} trains the same "
        f"{blocks} blocks"
        if blocks % size == 0
        else f"make trainer.batch_size or trainer.grad_accum a multiple of {size}"
    )
    raise ConfigError(
        f"{size} ranks cannot share trainer.batch_size={batch_size} x "
        f"trainer.grad_accum={grad_accum} evenly: {how}"
    )


def round_robin(items: Iterable[Item], rank: int, size: int) -> Iterator[tuple[Item, bool]]:
    """This rank's item of each round of `size` items, and whether it counts.

    Every rank gets equally many: where the last round is short, an item of somebody else's fills
    the place and does not count. So ranks that must compute together always can.
    """
    items = iter(items)
    while round_ := list(itertools.islice(items, size)):
        yield (round_[rank], True) if rank < len(round_) else (round_[0], False)
