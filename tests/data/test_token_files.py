"""Token files of every format are read, unsupported files refused, and changes detected."""

from pathlib import Path

import numpy as np
import pytest

from gpt2ckpt.data.token_files import TokenFile, open_token_file, width_warning
from gpt2ckpt.data.tokens import Piece, TokenStream
from gpt2ckpt.errors import ConfigError, InputError

VOCAB = 50257


def _shard(
    count: int, tokens: bytes, magic: int = 20240520, version: int = 1, order: str = "<"
) -> bytes:
    header = np.zeros(256, dtype=f"{order}i4")
    header[:3] = magic, version, count
    return header.tobytes() + tokens


def _u32(*tokens: int) -> bytes:
    return np.array(tokens, dtype="<u4").tobytes()


def _u16(*tokens: int) -> bytes:
    return np.array(tokens, dtype="<u2").tobytes()


def test_both_formats_give_the_same_tokens(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, VOCAB, 5000)
    plain, shard = tmp_path / "plain.bin", tmp_path / "shard.bin"
    plain.write_bytes(_u16(*values))
    shard.write_bytes(_shard(5000, _u16(*values)))
    for path in (plain, shard):
        tokens = open_token_file(path, VOCAB)
        assert tokens[:5000].tolist() == values.tolist()
        assert tokens[4990:6000].tolist() == values[4990:].tolist()
        assert tokens[7:7].dtype == tokens.dtype == np.uint16
        assert (len(tokens), tokens.path) == (5000, path)


REFUSED = {
    "empty": (b"", "the file is empty"),
    "odd": (b"\0\0\0", "3 bytes is odd"),
    "version": (_shard(2, _u16(1, 2), version=2), "shard version 2 is not supported, only 1"),
    "short": (
        _shard(3, _u16(1, 2)),
        "3 tokens has 1030 bytes, .* has 1028",
    ),
    "long": (
        _shard(1, _u16(1, 2)),
        "1 tokens has 1026 bytes, .* has 1028",
    ),
    "odd_shard": (_shard(1, _u16(1) + b"\0"), "a shard of 1 tokens"),
    "none": (_shard(0, b""), "a count of 0 tokens"),
    "negative": (_shard(-1, b""), "a count of -1 tokens"),
    "header": (_shard(1, b"")[:1000], "header is truncated: 1000 of 1024 bytes"),
    "llama_short": (
        _shard(2, _u16(1, 2), 20240801, 7),
        "2 tokens has 1032 bytes",
    ),
    "llama_version": (_shard(2, _u32(1, 2), 20240801), "shard version 1 is not supported, only 7"),
    "big_endian_shard": (_shard(2, _u16(1, 2), order=">"), "a big-endian shard"),
    "vocabulary": (_u16(1, 2, 50257, 4), "token 50257 at index 2 is not below model.vocab_size"),
    "text": (b"plain text, not tokens. " * 4, "looks like text, not tokens: use data=text"),
    "odd_text": (b"plain text, not tokens." * 3, "looks like text"),
    "accented_text": ("déjà vu, à l'été, où ça ? ".encode() * 200, "looks like text"),
    "numpy": (b"\x93NUMPY\x01\x00" + bytes(120), "a NumPy .npy file"),
    "zip": (b"PK\x03\x04" + bytes(60), "a zip archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(61), "compressed with gzip"),
    "parquet": (b"PAR1" + bytes(60), "a Parquet file"),
    "swapped": (np.arange(500, dtype=">u2").tobytes(), "the file is big-endian"),
    "uint64": (np.arange(500, dtype="<u8").tobytes(), "64-bit tokens"),
    "int64_big_endian": (np.arange(500, dtype=">i8").tobytes(), "64-bit tokens"),
    "uint32_big_endian": (np.arange(500, dtype=">u4").tobytes(), "has big-endian tokens"),
    "uint32_vocabulary": (
        np.arange(0, 200_000, 100, dtype="<u4").tobytes(),
        "token 50300 at index 503",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_error_names_a_file_in_an_unsupported_format(tmp_path: Path, kind: str) -> None:
    content, message = REFUSED[kind]
    path = tmp_path / f"{kind}.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{kind}\.bin.*{message}"):
        open_token_file(path, VOCAB)


def test_error_names_an_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.bin cannot be read \(No such file"):
        open_token_file(tmp_path / "gone.bin", VOCAB)
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory"):
        open_token_file(tmp_path, VOCAB)


def test_token_outside_the_vocabulary_is_an_error_when_read(tmp_path: Path) -> None:
    good, late = tmp_path / "good.bin", tmp_path / "late.bin"
    good.write_bytes(bytes(2 * 1000))
    late.write_bytes(_u16(*[0] * 4000, 50300, 0, 0))
    stream = TokenStream([Piece(p.name, open_token_file(p, VOCAB)) for p in (good, late)], VOCAB)
    assert stream.read(0, 5000).max() == 0
    with pytest.raises(InputError, match=r"late\.bin: token 50300 at index 4000 .*=50257"):
        stream.read(4990, 12)
    larger = TokenStream(stream.pieces, 50304)
    assert larger.read(4990, 12).max() == 50300


def test_32_bit_shards_and_plain_files_are_recognized(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, VOCAB, 5000).astype("<u4")
    plain, shard, signed = (tmp_path / name for name in ("plain.bin", "shard.bin", "signed.bin"))
    values.tofile(plain)
    values.astype("<i4").tofile(signed)
    shard.write_bytes(_shard(5000, values.tobytes(), 20240801, 7))
    for path in (plain, shard, signed):
        tokens = open_token_file(path, VOCAB)
        assert tokens.dtype == np.uint32
        stream = TokenStream([Piece("a", tokens)], VOCAB)
        assert stream.read(0, 5000).tolist() == values.tolist()
    assert width_warning([open_token_file(shard, VOCAB)]) is None
    wide = [open_token_file(path, VOCAB) for path in (plain, signed)]
    assert "plain.bin and 1 more has no header and looks like 32-bit" in str(width_warning(wide))
    assert width_warning([open_token_file(plain, VOCAB, "uint32")]) is None


def test_tokens_above_16_bits_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    values = np.random.default_rng(0).integers(0, 128_000, 20_000).astype("<u4")
    values.tofile(path)
    assert open_token_file(path, 128_256)[:20_000].tolist() == values.tolist()
    with pytest.raises(InputError, match=r"a\.bin: token \d{5,} at index \d+ is not below"):
        open_token_file(path, VOCAB)


HONEST_16_BIT = {
    "constant": np.full(5000, 7),
    "zeros": np.zeros(5000),
    "bytes": np.frombuffer(b"The quick brown fox jumps over the lazy dog. " * 90, np.uint8),
    "one_in_ten": np.arange(5000) * (np.arange(5000) % 10 == 0) % 300,
    "pairs": np.tile([5, 9], 2500),
    "pairs_with_zero": np.tile([7, 0], 2500),
    "few": np.array([1, 0, 2, 0, 3, 0]),
    "small_odd": np.tile([400, 3, 401, 4], 1000),
    "random": np.random.default_rng(0).integers(0, VOCAB, 5000),
    "two_tokens": np.random.default_rng(0).integers(0, 2, 5000),
    "starts_with_zeros": np.concatenate([np.zeros(100_000), np.arange(100_000) % VOCAB]),
}


@pytest.mark.parametrize("kind", HONEST_16_BIT)
def test_16_bit_tokens_are_not_read_as_32_bit(tmp_path: Path, kind: str) -> None:
    path, values = tmp_path / "a.bin", HONEST_16_BIT[kind].astype("<u2")
    values.tofile(path)
    tokens = open_token_file(path, VOCAB)
    assert (tokens.dtype, tokens.looks_wide) == (np.uint16, False)
    assert tokens[: len(values)].tolist() == values.tolist()


def test_data_dtype_overrides_the_detected_width(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    np.tile(np.array([11, 0, 12, 0], dtype="<u2"), 500).tofile(path)
    assert open_token_file(path, VOCAB).dtype == np.uint32
    halves = open_token_file(path, VOCAB, "uint16")
    assert halves[:4].tolist() == [11, 0, 12, 0]
    assert "reading it as uint16" in str(width_warning([halves]))
    np.arange(500, dtype="<u8").tofile(path)
    assert open_token_file(path, VOCAB, "uint16")[:8].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    path.write_bytes(_u16(1, 2, 3))
    with pytest.raises(InputError, match="6 bytes is not a multiple of 4"):
        open_token_file(path, VOCAB, "uint32")
    path.write_bytes(_shard(2, _u16(1, 2)))
    with pytest.raises(InputError, match=r"the header requires uint16, not data\.dtype=uint32"):
        open_token_file(path, VOCAB, "uint32")
    with pytest.raises(ConfigError, match=r"data\.dtype is 'int8'; it must be one of auto, uint16"):
        open_token_file(path, VOCAB, "int8")


def test_file_truncated_while_open_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    np.arange(5000, dtype="<u2").tofile(path)
    tokens = open_token_file(path, VOCAB)
    with path.open("r+b") as file:
        file.truncate(4001)
    assert tokens[:2000].tolist() == [*range(2000)]
    with pytest.raises(
        InputError, match=r"a\.bin: the file was truncated .* 10000 .* has 4001 now"
    ):
        tokens[1990:2010]


def test_open_token_file_ignores_a_replaced_path(tmp_path: Path) -> None:
    path, other = tmp_path / "a.bin", tmp_path / "b.bin"
    np.arange(5000, dtype="<u2").tofile(path)
    np.zeros(5000, dtype="<u2").tofile(other)
    tokens = open_token_file(path, VOCAB)
    other.replace(path)
    assert tokens[10:13].tolist() == [10, 11, 12]


def test_descriptor_is_closed_with_the_token_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    np.arange(5000, dtype="<u2").tofile(path)
    before = len([*Path("/dev/fd").iterdir()])
    files = [TokenFile(path, 0, 5000, np.dtype("<u2")) for _ in range(5)]
    assert len([*Path("/dev/fd").iterdir()]) == before + 5
    del files
    assert len([*Path("/dev/fd").iterdir()]) == before
