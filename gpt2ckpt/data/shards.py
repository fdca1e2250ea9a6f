"""Text to token shards in llm.c's format, train_000000.bin and val_000000.bin onwards.

Everything is written in a hidden folder inside the output folder, and renamed into place at the
end, when each shard is on the device. A run that fails takes its shards back; one that was killed
leaves that folder, and in it the names that it was about to give: the next run removes both. A lock
on the output folder, which the system drops when its holder dies, keeps a second run out.
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
_PUBLISHING = "publishing"  # in that folder: the names of the shards that are being published
_SHARD = re.compile(r"(train|val)_\d+\.bin")
_MAX_SHARD_TOKENS = 2**31 - 1  # the header counts in int32
_CHUNK_TOKENS = 1 << 20


@dataclass(frozen=True)
class ShardSummary:
    """What `shard_corpus` wrote. Counts are tokens, end-of-text included."""

    train_tokens: int
    val_tokens: int
    shards: tuple[Path, ...]
    warning: str | None = None


def shard_corpus(
    data: EmbeddedDataConfig | TextDataConfig, out: str, shard_tokens: int
) -> ShardSummary:
    """Encodes the text of `data` into shards under the folder `out`, in constant memory.

    The streams are those that `open_corpus` makes of the same config. While it works, the tokens
    take their size on disk twice.

    Raises:
        ConfigError: a setting out of range.
        InputError: unusable text, an output folder that holds shards or cannot be written.
    """
    if out.strip() in ("", "???"):
        raise ConfigError("out is not set: give the folder for the shards, out=FOLDER")
    _check_shard_tokens(shard_tokens)
    train_sources, val_sources = text_sources(data)
    with _staging(Path(out).expanduser()) as staging:
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
                f"{train_tokens} training and {val_tokens} validation tokens: there is too little "
                "text to hold any out; give more, or set data.val"
            )
        splits = {split: _chunks(*part) for split, part in parts.items()}
        shards = _write_and_publish(splits, staging, shard_tokens)
    return ShardSummary(train_tokens, val_tokens, tuple(shards), warning)


def write_shards(
    splits: Mapping[str, Iterable[Tokens]], out: Path, shard_tokens: int
) -> list[Path]:
    """Writes each split's tokens as shards of `shard_tokens` tokens; a last one may be smaller.

    Args:
        splits: "train" and "val" to uint16 arrays of any lengths.
        out: the folder, made if missing; it must not hold shards.
        shard_tokens: tokens per shard, 1 to 2**31-1.

    Returns:
        The shards, complete and on the device.

    Raises:
        ConfigError: shard_tokens out of range.
        InputError: the folder holds shards, is being written, or cannot be written.
    """
    _check_shard_tokens(shard_tokens)
    with _staging(out) as staging:
        return _write_and_publish(splits, staging, shard_tokens)


def _check_shard_tokens(shard_tokens: int) -> None:
    if not 1 <= shard_tokens <= _MAX_SHARD_TOKENS:
        raise ConfigError(f"shard_tokens={shard_tokens} must lie between 1 and {_MAX_SHARD_TOKENS}")


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A hidden folder inside `out`, removed at the end; so is `out`, if it was made in vain."""
    made = not out.exists()
    lock = -1
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: shards go into a folder, give another with out=FOLDER")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out, os.O_RDONLY)
        if try_lock(lock) is Lock.HELD:  # without locks two runs at once are the user's to avoid
            raise InputError(
                f"{out}: another process is writing shards there: wait for it, or give another "
                "folder with out=FOLDER"
            )
        staging = out / _STAGING
        _remove_leftovers(staging)  # of a run that died: no live one has the lock
        _refuse_existing(out)
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if made and not any(out.iterdir()):
                out.rmdir()
    except OSError as error:
        raise InputError(
            f"{out}: cannot write shards: {error.strerror or error}. Give another folder with "
            "out=FOLDER"
        ) from error
    finally:
        if lock >= 0:
            os.close(lock)


def _remove_leftovers(staging: Path) -> None:
    """Delete the folder of a run that died, and the shards that it had published by then."""
    with contextlib.suppress(FileNotFoundError):
        names = (staging / _PUBLISHING).read_text().split()
        durable.delete([staging.parent / name for name in names if _SHARD.fullmatch(name)])
    shutil.rmtree(staging, ignore_errors=True)


def _refuse_existing(out: Path) -> None:
    for pattern in ("train_*.bin", "val_*.bin"):
        for path in sorted(out.glob(pattern)):
            raise InputError(
                f"{out} already holds shards ({path.name}): give another folder with out=FOLDER, "
                "or delete them"
            )


def _spool(sources: list[Source], path: Path) -> tuple[TokenFile, list[Known]]:
    """Write all tokens of the sources to one file: where to cut is known only at the end."""
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


def _write_and_publish(
    splits: Mapping[str, Iterable[Tokens]], staging: Path, shard_tokens: int
) -> list[Path]:
    written: list[Path] = []
    for split, tokens in splits.items():
        for number, parts in enumerate(_cut(tokens, shard_tokens)):
            path = staging / f"{split}_{number:06d}.bin"
            _write_shard(path, parts)
            written.append(path)
    out = staging.parent
    _refuse_existing(out)  # that came meanwhile: a rename would replace it
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
    """Groups of arrays, each of `shard_tokens` but the last; use up each before the next."""
    arrays = (array for array in tokens if len(array))
    rest = next(arrays, None)

    def one_shard() -> Iterator[Tokens]:
        nonlocal rest
        room = shard_tokens
        while room and rest is not None:
            part, rest = rest[:room], rest[room:]
            room -= len(part)
            yield part
            if not len(rest):
                rest = next(arrays, None)

    while rest is not None:
        yield one_shard()


def _write_shard(path: Path, parts: Iterable[Tokens]) -> None:
    """One shard, on the device when this returns; its header is filled in at the end."""
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
