"""Token files of both formats, and the stream that joins them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2ckpt.data.tokens import Piece, TokenStream, count_blocks, open_token_file
from gpt2ckpt.errors import InputError

VOCAB = 50257


def _shard(count: int, tokens: bytes, magic: int = 20240520, version: int = 1) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, count
    return header.tobytes() + tokens


def _u16(*tokens: int) -> bytes:
    return np.array(tokens, dtype="<u2").tobytes()


def test_both_formats_give_the_same_tokens(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, VOCAB, 5000)
    plain, shard = tmp_path / "plain.bin", tmp_path / "shard.bin"
    plain.write_bytes(_u16(*values))
    shard.write_bytes(_shard(5000, _u16(*values)))
    for path in (plain, shard):
        piece = open_token_file(path, VOCAB)
        assert piece.tokens.tolist() == values.tolist()
        assert piece.tokens.dtype == np.uint16
        assert isinstance(piece.tokens.base, np.memmap)
        assert piece.name == str(path)


REFUSED = {
    "empty": (b"", "the file is empty"),
    "odd": (b"\0\0\0", "3 bytes is an odd number"),
    "version": (_shard(2, _u16(1, 2), version=2), "shard version 2; only version 1"),
    "short": (_shard(3, _u16(1, 2)), "counts 3 tokens, which take 1030 bytes, .* has 1028"),
    "long": (_shard(1, _u16(1, 2)), "counts 1 tokens, which take 1026 bytes, .* has 1028"),
    "odd_shard": (_shard(1, _u16(1) + b"\0"), "counts 1 tokens"),
    "none": (_shard(0, b""), "the header counts 0 tokens"),
    "negative": (_shard(-1, b""), "the header counts -1 tokens"),
    "header": (_shard(1, b"")[:1000], "header is cut short: 1000 bytes"),
    "llama": (_shard(2, _u16(1, 2), magic=20240801), "token 55713 at index 0"),
    "vocabulary": (_u16(1, 2, 50257, 4), "token 50257 at index 2 is not below model.vocab_size"),
    "text": (b"plain text, not tokens. " * 4, "looks like text, not tokens: use data=text"),
    "odd_text": (b"plain text, not tokens." * 3, "looks like text"),
    "numpy": (b"\x93NUMPY\x01\x00" + bytes(120), "a NumPy .npy file"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    content, message = REFUSED[kind]
    path = tmp_path / f"{kind}.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{kind}\.bin: .*{message}"):
        open_token_file(path, VOCAB)


def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.bin: cannot be read: No such file"):
        open_token_file(tmp_path / "gone.bin", VOCAB)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        open_token_file(tmp_path, VOCAB)


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


def test_a_read_before_the_start_is_refused() -> None:
    stream = TokenStream([Piece("a", np.arange(9, dtype=np.uint16))], VOCAB)
    with pytest.raises(IndexError):
        stream.read(-1, 2)


def test_a_token_outside_the_vocabulary_is_found_when_it_is_read(tmp_path: Path) -> None:
    good, late = tmp_path / "good.bin", tmp_path / "late.bin"
    good.write_bytes(bytes(2 * 1000))
    late.write_bytes(_u16(*[0] * 4000, 50300, 0, 0))
    stream = TokenStream([open_token_file(path, VOCAB) for path in (good, late)], VOCAB)
    assert stream.read(0, 5000).max() == 0
    with pytest.raises(InputError, match=r"late\.bin: token 50300 at index 4000 .*=50257"):
        stream.read(4990, 12)
    larger = TokenStream(stream.pieces, 50304)
    assert larger.read(4990, 12).max() == 50300


@pytest.mark.parametrize(
    ("tokens", "block_size", "blocks"),
    [(0, 4, 0), (1, 4, 0), (4, 4, 0), (5, 4, 1), (8, 4, 1), (9, 4, 2)],
)
def test_a_block_needs_one_more_token_for_its_last_target(
    tokens: int, block_size: int, blocks: int
) -> None:
    assert count_blocks(tokens, block_size) == blocks
