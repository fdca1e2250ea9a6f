"""From a data config to a training and a validation stream of tokens.

Text is encoded at every start (some 10 MB/s) and held in memory at 2 bytes per token; for more than
about a gigabyte, make shards of it once and train on those (data=tokens).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from gpt2ckpt.config.schema import EmbeddedDataConfig, TextDataConfig, TokensDataConfig
from gpt2ckpt.data.digest import Content, Contents
from gpt2ckpt.data.files import expand_files
from gpt2ckpt.data.overlap import Known, overlap_warning
from gpt2ckpt.data.sources import (
    Source,
    check_tokenizer_fits,
    file_sources,
    held_out,
    text_sources,
)
from gpt2ckpt.data.token_files import TokenFile, Tokens, open_token_file, width_warning
from gpt2ckpt.data.tokens import Piece, TokenStream, count_blocks
from gpt2ckpt.errors import ConfigError, InputError
from gpt2ckpt.files.links import inode_of
from gpt2ckpt.units import plural

_WHOLE_TOKENS = 1 << 19  # files up to 1 MiB are hashed whole
_SAMPLES = 16
_SAMPLE_TOKENS = 1 << 13  # 16 KiB each


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus: its size in bytes, and its tokens (with end-of-text)."""

    name: str
    size_bytes: int
    tokens: int


@dataclass(frozen=True)
class Corpus:
    """What is trained and validated on.

    `digest` is known at once: 32 hex digits (xxh3_128) over both splits' tokens, in order, whatever
    the files are called. It covers every token of text and of token files up to 1 MiB; of a larger
    token file the length and 16 evenly spaced samples of 16 KiB, the first and the last included.
    `contents` has a digest of everything in each of `files`. `warnings` are for the user.
    """

    train: TokenStream
    val: TokenStream
    digest: str
    contents: Contents
    files: tuple[CorpusFile, ...]
    description: str
    warnings: tuple[str, ...] = ()


def open_corpus(
    config: EmbeddedDataConfig | TextDataConfig | TokensDataConfig,
    vocab_size: int,
    block_size: int,
) -> Corpus:
    """Opens the corpus that `config` names, and checks that it can be trained on.

    Args:
        config: the data group of the configuration.
        vocab_size: the model's vocabulary; no token may reach it.
        block_size: inputs per block; each split must hold at least one block and its last target.

    Raises:
        ConfigError: val_fraction out of range, no file given, or a vocabulary too small for text.
        InputError: a file is missing, empty or unusable, or there are too few tokens.
    """
    if isinstance(config, TokensDataConfig):
        corpus = _open_tokens(config, vocab_size)
    else:
        corpus = _open_text(config, vocab_size)
    own_val = getattr(config, "val", None) is not None
    more = "more in data.val" if own_val else "a larger data.val_fraction"
    _require_block("training", corpus.train, block_size, "more text")
    _require_block("validation", corpus.val, block_size, more)
    return corpus


def open_validation(
    config: EmbeddedDataConfig | TextDataConfig | TokensDataConfig,
    vocab_size: int,
    block_size: int,
) -> tuple[TokenStream, str]:
    """The validation split alone, and a description: files of its own need none to train on.

    Arguments and errors are those of `open_corpus`.
    """
    if isinstance(config, EmbeddedDataConfig) or config.val is None:
        if not isinstance(config, EmbeddedDataConfig) and config.train is None:
            raise ConfigError("data.val is missing: give a file or a glob, data.val=PATH")
        corpus = open_corpus(config, vocab_size, block_size)
        return corpus.val, corpus.description
    if isinstance(config, TokensDataConfig):
        opened = _open_files(expand_files("data.val", config.val), vocab_size, config.dtype)
    else:
        check_tokenizer_fits(vocab_size)
        opened = _encode_sources(file_sources("data.val", config.val))
    val = TokenStream(opened.pieces, vocab_size)
    _require_block("validation", val, block_size, "more in data.val")
    return val, f"{_described(config.kind, opened.files)}, {len(val):,} validation tokens"


@dataclass(frozen=True)
class _Opened:
    """Files and what is in them, side by side."""

    files: list[CorpusFile]
    pieces: list[Piece]

    @property
    def contents(self) -> list[Content]:
        return [piece.tokens for piece in self.pieces]


def _open_text(config: EmbeddedDataConfig | TextDataConfig, vocab_size: int) -> Corpus:
    check_tokenizer_fits(vocab_size)
    train_sources, val_sources = text_sources(config)
    opened = _encode_sources(train_sources)
    if val_sources is not None:
        return _corpus(config.kind, opened, _encode_sources(val_sources), vocab_size)
    whole = TokenStream(opened.pieces, vocab_size)
    train, val = whole.split(len(whole) - held_out(len(whole), config.val_fraction))
    return Corpus(
        train=train,
        val=val,
        digest=_digest([train, val], whole=True),
        contents=Contents(opened.contents),
        files=tuple(opened.files),
        description=_described(config.kind, opened.files, train, val),
    )


def _encode_sources(sources: Sequence[Source]) -> _Opened:
    pieces = [Piece(source.name, np.concatenate(list(source.tokens()))) for source in sources]
    files = [
        CorpusFile(source.name, source.size_bytes, len(piece.tokens))
        for source, piece in zip(sources, pieces, strict=True)
    ]
    return _Opened(files, pieces)


def _open_tokens(config: TokensDataConfig, vocab_size: int) -> Corpus:
    splits = [("data.train", config.train), ("data.val", config.val)]
    paths = [expand_files(key, patterns) for key, patterns in splits]
    train, val = (_open_files(part, vocab_size, config.dtype) for part in paths)
    return _corpus(config.kind, train, val, vocab_size)


def _open_files(paths: Sequence[Path], vocab_size: int, dtype: str) -> _Opened:
    tokens = [open_token_file(path, vocab_size, dtype) for path in paths]
    files = [CorpusFile(str(t.path), t.status().st_size, len(t)) for t in tokens]
    return _Opened(files, [Piece(str(t.path), t) for t in tokens])


def _corpus(kind: str, train: _Opened, val: _Opened, vocab_size: int) -> Corpus:
    """A corpus of two splits with files of their own."""
    splits = TokenStream(train.pieces, vocab_size), TokenStream(val.pieces, vocab_size)
    contents = Contents([*train.contents, *val.contents])
    files = [*train.files, *val.files]
    known = _known([*train.pieces, *val.pieces], contents.known())
    warnings = [
        overlap_warning(known[: len(train.pieces)], known[len(train.pieces) :]),
        width_warning([part for part in contents.files if isinstance(part, TokenFile)]),
    ]
    return Corpus(
        *splits,
        _digest(splits, whole=kind != "tokens"),
        contents,
        tuple(files),
        _described(kind, files, *splits),
        tuple(filter(None, warnings)),
    )


def _known(pieces: Sequence[Piece], digests: list[str] | None) -> list[Known]:
    """Name each piece by its inode, if it is a file, and by the digest of its content."""
    marks: list[set[object]] = [set() for _ in pieces]
    for piece, mark in zip(pieces, marks, strict=True):
        if isinstance(piece.tokens, TokenFile):
            status = piece.tokens.status()
            mark.add(inode_of(status))
    for mark, digest in zip(marks, digests or (), strict=False):
        mark.add(digest)
    return [Known(piece.name, frozenset(mark)) for piece, mark in zip(pieces, marks, strict=True)]


def _described(kind: str, files: list[CorpusFile], *splits: TokenStream) -> str:
    megabytes = sum(file.size_bytes for file in files) / 1e6
    of = f"{kind}: {plural(len(files), 'file')}, {megabytes:,.1f} MB"
    if not splits:
        return of
    train, val = splits
    return f"{of}, {len(train):,} training and {len(val):,} validation tokens"


def _digest(streams: Sequence[TokenStream], *, whole: bool) -> str:
    hasher = xxhash.xxh3_128()
    for stream in streams:
        hasher.update(len(stream).to_bytes(8, "little"))
        for piece in stream.pieces:
            hasher.update(len(piece.tokens).to_bytes(8, "little"))
            for part in _parts(piece.tokens, whole=whole):
                hasher.update(part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes())
    return hasher.hexdigest()


def _parts(tokens: Content, *, whole: bool) -> list[Tokens]:
    """What the digest covers: everything, or evenly spaced samples of a large file."""
    if whole or len(tokens) <= _WHOLE_TOKENS:
        return [tokens[: len(tokens)]]
    last = len(tokens) - _SAMPLE_TOKENS
    starts = [last * number // (_SAMPLES - 1) for number in range(_SAMPLES)]
    return [tokens[start : start + _SAMPLE_TOKENS] for start in starts]


def _require_block(split: str, stream: TokenStream, block_size: int, more: str) -> None:
    if count_blocks(len(stream), block_size) == 0:
        raise InputError(
            f"the {split} data has {len(stream)} tokens, but one block needs {block_size + 1} "
            f"(model.block_size + 1): give {more}, or use a smaller model.block_size"
        )
