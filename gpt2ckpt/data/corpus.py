"""Opens the corpus of a data config as a training and a validation stream of tokens.

Text is tokenized at every start (about 10 MB/s) and kept in memory (2 bytes per token). Text of
more than about 1 GB should be sharded once with the `prepare` command and read with data=tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from gpt2ckpt.config.options import Option, PluginError
from gpt2ckpt.config.schema import EmbeddedDataConfig, TextDataConfig, TokensDataConfig
from gpt2ckpt.data.digest import Content, Contents
from gpt2ckpt.data.files import expand_files
from gpt2ckpt.data.overlap import Known, overlap_warning
from gpt2ckpt.data.plugin_tokens import PluginTokens
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
from gpt2ckpt.extend import TokenData
from gpt2ckpt.files.links import inode_of
from gpt2ckpt.units import plural

_UNSAMPLED_TOKENS = 1 << 19  # files up to 1 MiB are hashed completely
_SAMPLES = 16
_SAMPLE_TOKENS = 1 << 13  # 16 KiB each


@dataclass(frozen=True)
class CorpusFile:
    """One file of a corpus: its size in bytes, and its number of tokens with end-of-text."""

    name: str
    size_bytes: int
    tokens: int


@dataclass(frozen=True)
class Corpus:
    """The training and validation data of a run.

    Attributes:
        train: the training stream.
        val: the validation stream.
        digest: 32 hex digits (xxh3_128) over the tokens of both splits, independent of file names.
            It must be fast, so for token files above 1 MiB it covers only the length and 16 evenly
            spaced samples of 16 KiB.
        contents: the digest of the complete content of each file.
        files: the files, training files first.
        description: one line for messages.
        warnings: messages for the user.
    """

    train: TokenStream
    val: TokenStream
    digest: str
    contents: Contents
    files: tuple[CorpusFile, ...]
    description: str
    warnings: tuple[str, ...] = ()


def open_corpus(config: Any, vocab_size: int, block_size: int) -> Corpus:
    """Open the corpus of a config and check that a model can be trained on it.

    Args:
        config: the typed config of a data source.
        vocab_size: vocabulary size of the model; tokens must be smaller.
        block_size: inputs per token block; each split needs at least one block and its last target.

    Raises:
        ConfigError: val_fraction is out of range, no file is given, or the vocabulary is too small.
        InputError: a file is missing, empty or unusable, or there are too few tokens.
        PluginError: a plugin raised an exception, or did not return TokenData.
    """
    from gpt2ckpt.config import registry  # imports Hydra

    source = registry.build("data", config)
    if isinstance(source, TokensDataConfig):
        corpus = _open_tokens(source, vocab_size)
    elif isinstance(source, EmbeddedDataConfig | TextDataConfig):
        corpus = _open_text(source, vocab_size)
    else:
        option = registry.option_of("data", config)
        corpus = _open_plugin(source, option, vocab_size)
        for split, stream in (("training", corpus.train), ("validation", corpus.val)):
            _require_block(split, stream, block_size, f"return more tokens from {option}")
        return corpus
    own_val = getattr(config, "val", None) is not None
    more = "pass more data in data.val" if own_val else "set a larger data.val_fraction"
    _require_block("training", corpus.train, block_size, "use more training data")
    _require_block("validation", corpus.val, block_size, more)
    return corpus


def open_validation(config: Any, vocab_size: int, block_size: int) -> tuple[TokenStream, str]:
    """Return the validation split and its description. With data.val, no training file is read.

    Arguments and errors are those of `open_corpus`.
    """
    reads_files = isinstance(config, TextDataConfig | TokensDataConfig)
    if not reads_files or config.val is None:
        if reads_files and config.train is None:
            raise ConfigError("data.val is missing: pass a file or a glob with data.val=PATH")
        corpus = open_corpus(config, vocab_size, block_size)
        return corpus.val, corpus.description
    if isinstance(config, TokensDataConfig):
        kind = "tokens"
        opened = _open_files(expand_files("data.val", config.val), vocab_size, config.dtype)
    else:
        kind = "text"
        check_tokenizer_fits(vocab_size)
        opened = _encode_sources(file_sources("data.val", config.val))
    val = TokenStream(opened.pieces, vocab_size)
    _require_block("validation", val, block_size, "pass more data in data.val")
    return val, f"{_described(kind, opened.files)}, {len(val):,} validation tokens"


@dataclass(frozen=True)
class _Opened:
    """Files and their tokens, in the same order."""

    files: list[CorpusFile]
    pieces: list[Piece]

    @property
    def contents(self) -> list[Content]:
        return [piece.tokens for piece in self.pieces]


def _open_text(config: EmbeddedDataConfig | TextDataConfig, vocab_size: int) -> Corpus:
    check_tokenizer_fits(vocab_size)
    train_sources, val_sources = text_sources(config)
    kind = "embedded" if isinstance(config, EmbeddedDataConfig) else "text"
    opened = _encode_sources(train_sources)
    if val_sources is not None:
        return _corpus(kind, opened, _encode_sources(val_sources), vocab_size)
    stream = TokenStream(opened.pieces, vocab_size)
    train, val = stream.split(len(stream) - held_out(len(stream), config.val_fraction))
    return Corpus(
        train=train,
        val=val,
        digest=_digest([train, val], complete=True),
        contents=Contents(opened.contents),
        files=tuple(opened.files),
        description=_described(kind, opened.files, train, val),
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
    return _corpus("tokens", train, val, vocab_size)


def _open_files(paths: Sequence[Path], vocab_size: int, dtype: str) -> _Opened:
    tokens = [open_token_file(path, vocab_size, dtype) for path in paths]
    files = [CorpusFile(str(t.path), t.status().st_size, len(t)) for t in tokens]
    return _Opened(files, [Piece(str(t.path), t) for t in tokens])


def _open_plugin(data: Any, option: Option, vocab_size: int) -> Corpus:
    if not isinstance(data, TokenData):
        raise PluginError(
            f"{option}: the builder returned a {type(data).__name__}; it must return "
            "extend.TokenData(train, val, description)"
        )
    pieces = [
        Piece(f"{option.name} ({split})", PluginTokens(tokens, split, option, vocab_size))
        for split, tokens in (("train", data.train), ("val", data.val))
    ]
    train, val = (TokenStream([piece], vocab_size) for piece in pieces)
    contents = Contents([piece.tokens for piece in pieces])
    known = contents.known()
    is_same = known is not None and known[0] == known[1]
    source = f"{option.name}: {data.description}" if data.description else option.name
    return Corpus(
        train=train,
        val=val,
        digest=_digest([train, val], complete=False),
        contents=contents,
        files=tuple(CorpusFile(p.name, p.tokens.nbytes, len(p.tokens)) for p in pieces),
        description=f"{source}, {_counted(train, val)}",
        warnings=(f"{option} validates on the tokens that it trains on",) if is_same else (),
    )


def _corpus(kind: str, train: _Opened, val: _Opened, vocab_size: int) -> Corpus:
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
        _digest(splits, complete=kind != "tokens"),
        contents,
        tuple(files),
        _described(kind, files, *splits),
        tuple(filter(None, warnings)),
    )


def _known(pieces: Sequence[Piece], digests: list[str] | None) -> list[Known]:
    """Return the identities of each piece: the inode of a file, and the digest if it is known."""
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
    source = f"{kind}: {plural(len(files), 'file')}, {megabytes:,.1f} MB"
    if not splits:
        return source
    return f"{source}, {_counted(*splits)}"


def _counted(train: TokenStream, val: TokenStream) -> str:
    return f"{len(train):,} training and {len(val):,} validation tokens"


def _digest(streams: Sequence[TokenStream], *, complete: bool) -> str:
    hasher = xxhash.xxh3_128()
    for stream in streams:
        hasher.update(len(stream).to_bytes(8, "little"))
        for piece in stream.pieces:
            hasher.update(len(piece.tokens).to_bytes(8, "little"))
            for part in _parts(piece.tokens, complete=complete):
                hasher.update(part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes())
    return hasher.hexdigest()


def _parts(tokens: Content, *, complete: bool) -> list[Tokens]:
    if complete or len(tokens) <= _UNSAMPLED_TOKENS:
        return [tokens[: len(tokens)]]
    last = len(tokens) - _SAMPLE_TOKENS
    starts = [last * number // (_SAMPLES - 1) for number in range(_SAMPLES)]
    return [tokens[start : start + _SAMPLE_TOKENS] for start in starts]


def _require_block(split: str, stream: TokenStream, block_size: int, more: str) -> None:
    if count_blocks(len(stream), block_size) == 0:
        raise InputError(
            f"the {split} data has {len(stream)} tokens, but one block needs {block_size + 1} "
            f"(model.block_size + 1): {more}, or set a smaller model.block_size"
        )
