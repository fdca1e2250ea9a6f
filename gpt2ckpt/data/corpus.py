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
from gpt2ckpt.data.files import expand_files
from gpt2ckpt.data.sources import (
    Source,
    check_tokenizer_fits,
    file_sources,
    held_out,
    text_sources,
)
from gpt2ckpt.data.tokens import Piece, Tokens, TokenStream, count_blocks, open_token_file
from gpt2ckpt.errors import ConfigError, InputError

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

    `digest` is 32 hex digits (xxh3_128) over both splits' tokens, in order, whatever the files are
    called. It covers every token of text and of token files up to 1 MiB. Of a larger token file it
    covers the length and 16 evenly spaced samples of 16 KiB, the first and the last included: that
    notices other data, another order, a file added, removed, cut or grown, but not an edit of a
    few tokens between the samples.
    """

    train: TokenStream
    val: TokenStream
    digest: str
    files: tuple[CorpusFile, ...]
    description: str


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
        pieces, files = _open_files(expand_files("data.val", config.val), vocab_size)
    else:
        check_tokenizer_fits(vocab_size)
        pieces, files = _encode_sources(file_sources("data.val", config.val))
    val = TokenStream(pieces, vocab_size)
    _require_block("validation", val, block_size, "more in data.val")
    return val, f"{_described(config.kind, files)}, {len(val):,} validation tokens"


def _open_text(config: EmbeddedDataConfig | TextDataConfig, vocab_size: int) -> Corpus:
    check_tokenizer_fits(vocab_size)
    train_sources, val_sources = text_sources(config)
    pieces, files = _encode_sources(train_sources)
    train = TokenStream(pieces, vocab_size)
    if val_sources is None:
        train, val = train.split(len(train) - held_out(len(train), config.val_fraction))
    else:
        val_pieces, val_files = _encode_sources(val_sources)
        val = TokenStream(val_pieces, vocab_size)
        files += val_files
    return _corpus(config.kind, train, val, files, whole=True)


def _encode_sources(sources: Sequence[Source]) -> tuple[list[Piece], list[CorpusFile]]:
    pieces = [Piece(source.name, np.concatenate(list(source.tokens()))) for source in sources]
    files = [
        CorpusFile(source.name, source.size_bytes, len(piece.tokens))
        for source, piece in zip(sources, pieces, strict=True)
    ]
    return pieces, files


def _open_tokens(config: TokensDataConfig, vocab_size: int) -> Corpus:
    train_paths = expand_files("data.train", config.train)
    val_paths = expand_files("data.val", config.val)
    pieces, files = _open_files([*train_paths, *val_paths], vocab_size)
    train = TokenStream(pieces[: len(train_paths)], vocab_size)
    val = TokenStream(pieces[len(train_paths) :], vocab_size)
    return _corpus(config.kind, train, val, files, whole=False)


def _open_files(paths: Sequence[Path], vocab_size: int) -> tuple[list[Piece], list[CorpusFile]]:
    pieces = [open_token_file(path, vocab_size) for path in paths]
    files = [
        CorpusFile(piece.name, path.stat().st_size, len(piece.tokens))
        for path, piece in zip(paths, pieces, strict=True)
    ]
    return pieces, files


def _corpus(
    kind: str, train: TokenStream, val: TokenStream, files: list[CorpusFile], *, whole: bool
) -> Corpus:
    tokens = f"{len(train):,} training and {len(val):,} validation tokens"
    description = f"{_described(kind, files)}, {tokens}"
    return Corpus(train, val, _digest([train, val], whole=whole), tuple(files), description)


def _described(kind: str, files: list[CorpusFile]) -> str:
    megabytes = sum(file.size_bytes for file in files) / 1e6
    return f"{kind}: {len(files)} {'file' if len(files) == 1 else 'files'}, {megabytes:,.1f} MB"


def _digest(streams: Sequence[TokenStream], *, whole: bool) -> str:
    hasher = xxhash.xxh3_128()
    for stream in streams:
        hasher.update(len(stream).to_bytes(8, "little"))
        for piece in stream.pieces:
            hasher.update(len(piece.tokens).to_bytes(8, "little"))
            for part in _parts(piece.tokens, whole=whole):
                hasher.update(part.astype("<u2", copy=False).tobytes())
    return hasher.hexdigest()


def _parts(tokens: Tokens, *, whole: bool) -> list[Tokens]:
    """What the digest covers: everything, or evenly spaced samples of a large file."""
    if whole or len(tokens) <= _WHOLE_TOKENS:
        return [tokens]
    last = len(tokens) - _SAMPLE_TOKENS
    starts = [last * number // (_SAMPLES - 1) for number in range(_SAMPLES)]
    return [tokens[start : start + _SAMPLE_TOKENS] for start in starts]


def _require_block(split: str, stream: TokenStream, block_size: int, more: str) -> None:
    if count_blocks(len(stream), block_size) == 0:
        raise InputError(
            f"the {split} data has {len(stream)} tokens, but one block needs {block_size + 1} "
            f"(model.block_size + 1): give {more}, or use a smaller model.block_size"
        )
