"""Batches of token blocks, addressed by a global sample position.

Block i of a stream consists of the tokens i*T .. i*T+T, where T is the block size. The first T
tokens are the inputs; the last T tokens are the targets. So two neighbouring blocks share one
token, which is a target of the first block and an input of the second.
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
import xxhash

from gpt2ckpt.data.order import block_of
from gpt2ckpt.data.tokens import TokenStream, count_blocks

_PART = 1 << 20  # tokens read at a time

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]


class BlockLoader:
    """Training batches by sample position, without state: a resume needs only the position.

    Sample positions count from 0 over all epochs, so the order of the blocks does not depend on the
    batch size or the number of ranks.
    """

    def __init__(self, stream: TokenStream, block_size: int, seed: int) -> None:
        self.n_blocks = count_blocks(len(stream), block_size)
        if self.n_blocks == 0:
            raise ValueError(f"{len(stream)} tokens contain no block of {block_size} + 1 tokens")
        self._stream = stream
        self._block_size = block_size
        self._seed = seed

    def batch(self, position: int, count: int) -> Batch:
        """Return the samples position .. position+count-1, which may span two epochs.

        Returns:
            Inputs and targets, int64 tensors on the CPU, each of shape [count, block_size].

        Raises:
            InputError: a token is outside the vocabulary.
        """
        positions = np.arange(position, position + count, dtype=np.int64)
        blocks = block_of(positions, self.n_blocks, self._seed)
        return _gather(self._stream, blocks.tolist(), self._block_size)


def validation(
    stream: TokenStream, block_size: int, batch_size: int, limit: int | None = None
) -> Iterator[Batch]:
    """Yield every block once, in order; the last batch may be smaller.

    Args:
        stream: the validation tokens.
        block_size: inputs per block.
        batch_size: blocks per batch.
        limit: the number of blocks, from the first; None for all.

    Yields:
        Inputs and targets, int64 tensors on the CPU, each of shape [up to batch_size, block_size].
    """
    blocks = count_blocks(len(stream), block_size)
    if limit is not None:
        blocks = min(blocks, limit)
    for first in range(0, blocks, batch_size):
        yield _gather(stream, range(first, min(first + batch_size, blocks)), block_size)


def validation_digest(stream: TokenStream, block_size: int, limit: int) -> str:
    """Return a digest of the blocks that `validation` yields with the same `limit`.

    Raises:
        InputError: a token is outside the vocabulary.
    """
    tokens = min(count_blocks(len(stream), block_size), limit) * block_size + 1
    hasher = xxhash.xxh3_128(block_size.to_bytes(8, "little"))
    for start in range(0, tokens, _PART):
        part = stream.read(start, min(_PART, tokens - start))
        hasher.update(part.astype("<u4").tobytes())
    return hasher.hexdigest()


def _gather(stream: TokenStream, blocks: Sequence[int], block_size: int) -> Batch:
    inputs = np.empty((len(blocks), block_size), dtype=np.int64)
    targets = np.empty_like(inputs)
    for row, block in enumerate(blocks):
        tokens = stream.read(block * block_size, block_size + 1)
        inputs[row], targets[row] = tokens[:-1], tokens[1:]
    return torch.from_numpy(inputs), torch.from_numpy(targets)
