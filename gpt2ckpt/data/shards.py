"""Writes text as token shards in llm.c's format: train_000000.bin, …, val_000000.bin, ….

Shards are written to a hidden staging folder inside the output folder and renamed when all of them
are on the device. A process that fails deletes its shards. A killed process leaves the staging
folder with a list of the shards that it was publishing; the next process deletes both. A lock on
the output folder, which the kernel releases if its holder dies, excludes a second process.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from gpt2ckpt.config.schema import EmbeddedDataConfig, TextDataConfig
from gpt2ckpt.data.overlap import Known, overlap_warning
from gpt2ckpt.data.sources import Source, held_out, text_sources
from gpt2ckpt.data.token_files import HEADER_BYTES, MAGIC, VERSION, TokenFile, Tokens
from gpt2ckpt.errors import ConfigError, InputError
from gpt2ckpt.files import durable
from gpt2ckpt.files.locks import Lock, try_lock

_STAGING = ".shards.partial"
_PUBLISHING = "publishing"  # a file in the staging folder: the names of the shards to publish
_SHARD = re.compile(r"(train|val)_\d+\.bin")
_MAX_SHARD_TOKENS = 2**31 - 1  # the header counts in int32
_CHUNK_TOKENS = 1 << 20


@dataclass(frozen=True)
class ShardSummary:
    """Result of `shard_corpus`. Token counts include end-of-text."""

    train_tokens: int
    val_tokens: int
    shards: tuple[Path, ...]
    warning: str | None = None


def shard_corpus(
    data: EmbeddedDataConfig | TextDataConfig, out: str, shard_tokens: int
) -> ShardSummary:
    """Write the text of `data` as shards into the folder `out`, in constant memory.

    The tokens are those of `open_corpus` for the same config. Before the function returns, they are
    on disk twice.

    Raises:
        ConfigError: a setting is out of range.
        InputError: the text is unusable, or `out` contains shards or cannot be written.
    """
    if out.strip() in ("", "???"):
        raise ConfigError("out is not set: pass the folder for the shards with out=FOLDER")
    if not 1 <= shard_tokens <= _MAX_SHARD_TOKENS:
        raise ConfigError(f"shard_tokens={shard_tokens} must lie between 1 and {_MAX_SHARD_TOKENS}")
    train_sources, val_sources = text_sources(data)
    with open_staging(Path(out).expanduser()) as staging:
        train, known = _spool(train_sources, staging / "train.tokens")
        warning = None
        if val_sources is None:
            end = len(train)
            cut = end - held_out(end, data.val_fraction)
            parts = {"train": (train, 0, cut), "val": (train, cut, end)}
        else:
            val, known_val = _spool(val_sources, staging / "val.tokens")
            warning = overlap_warning(known, known_val)
            parts = {"train": (train, 0, len(train)), "val": (val, 0, len(val))}
        train_tokens, val_tokens = (stop - start for _, start, stop in parts.values())
        if not (train_tokens and val_tokens):
            raise InputError(
                f"{train_tokens} training and {val_tokens} validation tokens: the text is too "
                "short to hold out a part. Use more text, or set data.val"
            )
        splits = {split: _chunks(*part) for split, part in parts.items()}
        shards = publish_shards(splits, staging, shard_tokens)
    return ShardSummary(train_tokens, val_tokens, tuple(shards), warning)


@contextmanager
def open_staging(out: Path) -> Iterator[Path]:
    """Lock the folder `out` and yield its staging folder.

    The staging folder is deleted at the end, and `out` too if it is new and empty.

    Raises:
        InputError: `out` contains shards, is in use by another process, or is not writable.
    """
    is_new = not out.exists()
    lock = -1
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: pass a folder for the shards with out=FOLDER")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out, os.O_RDONLY)
        if try_lock(lock) is Lock.HELD:
            raise InputError(
                f"{out}: another process is writing shards there: wait until it ends, or pass a "
                "different folder with out=FOLDER"
            )
        staging = out / _STAGING
        _remove_leftovers(staging)  # of a dead process: this process holds the lock
        _refuse_existing(out)
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if is_new and not any(out.iterdir()):
                out.rmdir()
    except OSError as error:
        raise InputError(
            f"{out}: cannot write shards: {error.strerror or error}. Pass a different folder "
            "with out=FOLDER"
        ) from error
    finally:
        if lock >= 0:
            os.close(lock)


def _remove_leftovers(staging: Path) -> None:
    """Delete the staging folder of a dead process and the shards that it had published."""
    with contextlib.suppress(FileNotFoundError):
        names = (staging / _PUBLISHING).read_text().split()
        durable.delete([staging.parent / name for name in names if _SHARD.fullmatch(name)])
    shutil.rmtree(staging, ignore_errors=True)


def _refuse_existing(out: Path) -> None:
    for pattern in ("train_*.bin", "val_*.bin"):
        for path in sorted(out.glob(pattern)):
            raise InputError(
                f"{out} already contains shards ({path.name}): pass a different folder with "
                "out=FOLDER, or delete the shards"
            )


def _spool(sources: list[Source], path: Path) -> tuple[TokenFile, list[Known]]:
    """Write all tokens of the sources to one file, since the split needs their number."""
    count, known = 0, []
    with path.open("wb") as file:
        for source in sources:
            hasher = xxhash.xxh3_128()
            for tokens in source.tokens():
                data = tokens.astype("<u2", copy=False).tobytes()
                file.write(data)
                hasher.update(data)
                count += len(tokens)
            known.append(Known(source.name, frozenset([hasher.digest()])))
    return TokenFile(path, 0, count, np.dtype("<u2")), known


def _chunks(tokens: TokenFile, start: int, stop: int) -> Iterator[Tokens]:
    for first in range(start, stop, _CHUNK_TOKENS):
        yield tokens[first : min(first + _CHUNK_TOKENS, stop)]


def publish_shards(
    splits: Mapping[str, Iterable[Tokens]], staging: Path, shard_tokens: int
) -> list[Path]:
    """Write the tokens of each split as shards, and return their durable paths.

    Args:
        splits: uint16 arrays of any length for "train" and "val".
        staging: from `open_staging`.
        shard_tokens: tokens per shard; the last shard of a split may be smaller.

    Raises:
        InputError: a shard appeared in the output folder meanwhile.
    """
    written: list[Path] = []
    for split, tokens in splits.items():
        for number, parts in enumerate(_cut(tokens, shard_tokens)):
            path = staging / f"{split}_{number:06d}.bin"
            _write_shard(path, parts)
            written.append(path)
    out = staging.parent
    _refuse_existing(out)  # a rename would replace shards that appeared meanwhile
    durable.write(staging / _PUBLISHING, "\n".join(path.name for path in written).encode())
    published: list[Path] = []
    try:
        for path in written:
            published.append(path.rename(out / path.name))
        durable.sync_directory(out)
        (staging / _PUBLISHING).unlink()
    except BaseException:
        with contextlib.suppress(OSError):
            durable.delete(published)
        raise
    return published


def _cut(tokens: Iterable[Tokens], shard_tokens: int) -> Iterator[Iterator[Tokens]]:
    """Yield the arrays of each shard; consume the arrays of one shard before the next."""
    arrays = (array for array in tokens if len(array))
    rest = next(arrays, None)

    def one_shard() -> Iterator[Tokens]:
        nonlocal rest
        missing = shard_tokens
        while missing and rest is not None:
            part, rest = rest[:missing], rest[missing:]
            missing -= len(part)
            yield part
            if not len(rest):
                rest = next(arrays, None)

    while rest is not None:
        yield one_shard()


def _write_shard(path: Path, parts: Iterable[Tokens]) -> None:
    """Write one shard durably; its header, which has the token count, is completed at the end."""
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    count = 0
    with path.open("wb") as file:
        file.write(header.tobytes())
        for part in parts:
            file.write(part.astype("<u2", copy=False).tobytes())
            count += len(part)
        header[:3] = MAGIC, VERSION, count
        file.seek(0)
        file.write(header.tobytes())
        file.flush()
        os.fsync(file.fileno())
