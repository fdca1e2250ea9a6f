"""The stream that joins pieces of tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2ckpt.data.tokens import Piece, TokenStream, count_blocks

VOCAB = 50257


@given(
    lengths=st.lists(st.integers(0, 7), max_size=6),
    start=st.integers(0, 40),
    count=st.integers(0, 40),
    at=st.integers(0, 45),
)
def test_reads_and_splits_span_pieces(lengths: list[int], start: int, count: int, at: int) -> None:
    whole = np.arange(sum(lengths), dtype=np.uint16)
    parts = np.split(whole, np.cumsum(lengths)[:-1]) if lengths else []
    stream = TokenStream([Piece(f"p{i}", part) for i, part in enumerate(parts)], 100)
    assert len(stream) == len(whole)
    if start + count <= len(whole):
        read = stream.read(start, count)
        assert read.tolist() == whole[start : start + count].tolist()
        assert read.dtype == np.int64
    else:
        with pytest.raises(IndexError):
            stream.read(start, count)
    first, rest = stream.split(at)
    assert first.read(0, len(first)).tolist() == whole[:at].tolist()
    assert rest.read(0, len(rest)).tolist() == whole[at:].tolist()


def test_read_before_the_start_is_refused() -> None:
    stream = TokenStream([Piece("a", np.arange(9, dtype=np.uint16))], VOCAB)
    with pytest.raises(IndexError):
        stream.read(-1, 2)


@pytest.mark.parametrize(
    ("tokens", "block_size", "blocks"),
    [(0, 4, 0), (1, 4, 0), (4, 4, 0), (5, 4, 1), (8, 4, 1), (9, 4, 2)],
)
def test_block_needs_one_extra_token_for_its_last_target(
    tokens: int, block_size: int, blocks: int
) -> None:
    assert count_blocks(tokens, block_size) == blocks
