"""Distributes the blocks of a step and the batches of an evaluation over the ranks."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from gpt2ckpt.errors import ConfigError

Item = TypeVar("Item")


@dataclass(frozen=True)
class MicroBatch:
    """The blocks of a forward pass: `count` blocks of a step, the first with number `offset`."""

    offset: int
    count: int


StepShard: TypeAlias = tuple[MicroBatch, ...]


def shard_step(rank: int, size: int, batch_size: int, grad_accum: int) -> StepShard:
    """Return the micro-batches of a step that one of `size` ranks trains on.

    Each of the `batch_size * grad_accum` blocks of the step is trained on one rank, and all ranks
    have equally many blocks. If `size` divides `grad_accum`, each rank gets complete micro-batches;
    otherwise, each micro-batch is split into equal parts.

    Raises:
        ConfigError: `size` divides neither of them. The message suggests settings that work.
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
    """Yield this rank's item of each round of `size` items, and whether the item counts.

    All ranks get equally many items, because all ranks must take part in each collective. In a
    short last round, the ranks without an item get a copy of the first item, which does not count.
    """
    items = iter(items)
    while round_ := list(itertools.islice(items, size)):
        yield (round_[rank], True) if rank < len(round_) else (round_[0], False)
