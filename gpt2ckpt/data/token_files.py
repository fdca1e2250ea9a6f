"""Recognizes the format of token files and reads their tokens on demand.

Three little-endian formats are supported:
- nanoGPT's: uint16 tokens without a header (karpathy/nanoGPT, data/*/prepare.py), or uint32;
- llm.c's for GPT-2: a header of 256 int32 (20240520, version 1, token count, zeros), then uint16
  tokens, so the size is exactly 1024 + 2 * count bytes (karpathy/llm.c, llmc/dataloader.h);
- llm.c's for Llama 3: the same with 20240801, version 7 and uint32 tokens.
The first int32 of a file distinguishes the formats: read as uint16 tokens, the magic numbers of
llm.c start with 55,432 and 55,713, which are outside GPT-2's vocabulary.

A file without a header does not record the width of its tokens. Read with the wrong width, the file
still contains valid tokens, and a model would learn noise. So the width is inferred from the
values: the upper halves of 32-bit tokens are all 0 or tiny, which does not occur in 16-bit text.
"""

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gpt2ckpt.config.checks import one_of
from gpt2ckpt.errors import InputError
from gpt2ckpt.files.permissions import unreadable_message

TokenArray: TypeAlias = npt.NDArray[np.uint16]
Width: TypeAlias = np.dtype[np.uint16] | np.dtype[np.uint32]
Tokens: TypeAlias = TokenArray | npt.NDArray[np.uint32]

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 1024
DTYPES = ("auto", "uint16", "uint32")

_U16: Width = np.dtype("<u2")
_U32: Width = np.dtype("<u4")
_HEADERS: dict[tuple[int, int], Width] = {(MAGIC, VERSION): _U16, (20240801, 7): _U32}
_MAGICS = {magic for magic, _ in _HEADERS}
_HEAD_BYTES = 4096  # read when a file is opened
_SAMPLES = 16  # parts of a file without a header from which its width is inferred
_FEWEST = 16  # 32-bit tokens from which a width is inferred
_LARGEST_UPPER_HALF = 15  # of a 32-bit token: vocabularies of up to a million
_OTHER_FILES = {
    b"\x93NUMPY": "a NumPy .npy file: save the array with .tofile()",
    b"PK\x03\x04": "a zip archive (.npz, .pt): save the tokens as plain numbers, with .tofile()",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it",
    b"PAR1": "a Parquet file: write its text to files for data=text",
    b"ARROW1": "an Arrow file: write its text to files for data=text",
    b"MMIDIDX": "the index of a Megatron data set: pass its .bin files",
}


class TokenFile:
    """The tokens of an open file, read by slicing: `tokens[start:stop]`.

    The file is read, not mapped: if a mapped file is truncated or its disk fails, the process ends
    by SIGBUS, whereas a short read is an ordinary error. The descriptor refers to the file that was
    opened, even if another file takes its name.
    """

    def __init__(
        self, path: Path, offset: int, count: int, dtype: Width, *, looks_wide: bool = False
    ) -> None:
        """Open a file.

        Args:
            path: the file.
            offset: the byte at which the tokens start.
            count: the number of tokens.
            dtype: the width of the tokens.
            looks_wide: whether there is no header and the values look like 32-bit tokens.

        Raises:
            InputError: the file cannot be opened.
        """
        self.path, self.offset, self.dtype, self.looks_wide = path, offset, dtype, looks_wide
        self._count = count
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise unreadable_message(path, error) from error
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Size of all tokens in bytes."""
        return self._count * self.dtype.itemsize

    def status(self) -> os.stat_result:
        """Return the status of the open file. Raises InputError."""
        try:
            return os.fstat(self._descriptor)
        except OSError as error:
            raise unreadable_message(self.path, error) from error

    def __getitem__(self, part: slice) -> Tokens:
        """Return the tokens of the contiguous `part`, shape [stop - start].

        Raises:
            InputError: the file cannot be read or was truncated. The message names it.
        """
        start, stop, _ = part.indices(self._count)
        tokens: Tokens = np.empty(max(stop - start, 0), dtype=self.dtype)
        position = self.offset + start * self.dtype.itemsize
        try:
            done = os.preadv(self._descriptor, (tokens.data,), position)
            while done < tokens.nbytes:  # truncated, or a read of more than 2 GB
                rest = tokens.view(np.uint8)[done:].data
                count = os.preadv(self._descriptor, (rest,), position + done)
                if count == 0:
                    raise self._truncated()
                done += count
        except OSError as error:
            raise unreadable_message(self.path, error) from error
        return tokens

    def _truncated(self) -> InputError:
        before, now = self.offset + self.nbytes, self.status().st_size
        return InputError(
            f"{self.path}: the file was truncated or rewritten while in use: it had {before} bytes "
            f"and has {now} now. Restore the file, then resume with +resume=latest"
        )


def open_token_file(path: Path, vocab_size: int, dtype: str = "auto") -> TokenFile:
    """Open one token file after checking its size, header and first tokens.

    Args:
        path: the file.
        vocab_size: vocabulary size of the model; tokens must be smaller.
        dtype: "uint16" or "uint32" for a file without a header, "auto" to infer the width.

    Raises:
        ConfigError: `dtype` is invalid.
        InputError: the file is unreadable, empty, of another format, or inconsistent with its size
            or header, or a token within the first 4 KiB is outside the vocabulary.
    """
    one_of("data.dtype", dtype, DTYPES)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise unreadable_message(path, error) from error
    _refuse_other_files(path, size, head)
    if int.from_bytes(head[:4], "little") in _MAGICS:
        tokens = _open_shard(path, size, head, dtype)
    else:
        tokens = _open_plain(path, size, head, dtype)
    check_vocabulary(str(path), tokens[: len(head) // tokens.dtype.itemsize], 0, vocab_size)
    return tokens


def check_vocabulary(name: str, tokens: Tokens, offset: int, vocab_size: int) -> None:
    """Raise InputError for a token outside the vocabulary; `offset` is the index of the first."""
    if len(tokens) and int(tokens.max()) >= vocab_size:
        index = int(np.argmax(tokens >= vocab_size))
        why = (
            "the file is damaged or was made with a different tokenizer. Replace the file, or "
            "raise model.vocab_size"
        )
        if np.mean(tokens >= vocab_size) > 0.1 and int(tokens.byteswap().max()) < vocab_size:
            why = "the file is big-endian: save it little-endian"
        raise InputError(
            f"{name}: token {tokens[index]} at index {offset + index} is not below "
            f"model.vocab_size={vocab_size}: {why}"
        )


def width_warning(files: Sequence[TokenFile]) -> str | None:
    """Return a warning that names files without a header that look like 32-bit tokens."""
    wide = [file for file in files if file.looks_wide]
    if not wide:
        return None
    more = f" and {len(wide) - 1} more" if len(wide) > 1 else ""
    widths = " and ".join(sorted({file.dtype.name for file in wide}))
    return (
        f"{wide[0].path}{more} has no header and looks like 32-bit tokens: reading it as {widths}. "
        "Set data.dtype=uint16 or data.dtype=uint32 to choose"
    )


def looks_32_bit(halves: TokenArray) -> bool:
    """Return whether an even number of 16-bit values are the halves of 32-bit tokens.

    They are if every upper half is 0 (or tiny, with lower halves of all sizes) and most lower
    halves are not. Ambiguous data (constant, mostly zeros, or few tokens) counts as 16-bit tokens.
    """
    lower, upper = halves[::2], halves[1::2]
    if len(lower) < _FEWEST or np.count_nonzero(lower) <= len(lower) // 2:
        return False
    if not upper.any():
        return len(np.unique(lower)) > 1
    return int(upper.max()) <= _LARGEST_UPPER_HALF and int(lower.max()) >> 12 > 0


def _refuse_other_files(path: Path, size: int, head: bytes) -> None:
    if size == 0:
        raise InputError(f"{path}: the file is empty: write its tokens again or leave it out")
    for magic, what in _OTHER_FILES.items():
        if head.startswith(magic):
            raise InputError(f"{path} is not a token file: it is {what}")
    if int.from_bytes(head[:4], "big") in _MAGICS:
        raise InputError(f"{path} is a big-endian shard: write it in little-endian order")
    if _is_text(head):
        # Pairs of letters are valid token ids, so a model would be trained on noise.
        raise InputError(f"{path} looks like text, not tokens: use data=text")


def _is_text(head: bytes) -> bool:
    if len(head) < 64:
        return False
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else the head ends within a character
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)


def _open_shard(path: Path, size: int, head: bytes, dtype: str) -> TokenFile:
    if size < HEADER_BYTES:
        raise InputError(
            f"{path}: the header is truncated: {size} of {HEADER_BYTES} bytes. Copy the file again"
        )
    magic, version, count = (int(value) for value in np.frombuffer(head[:12], dtype="<i4"))
    width = _HEADERS.get((magic, version))
    if width is None:
        known = next(number for kind, number in _HEADERS if kind == magic)
        raise InputError(
            f"{path}: shard version {version} is not supported, only {known}: write the file again "
            "with gpt2ckpt.prepare or the scripts of llm.c"
        )
    if dtype not in ("auto", width.name):
        raise InputError(
            f"{path}: the header requires {width.name}, not data.dtype={dtype}: remove data.dtype"
        )
    if count < 1:
        raise InputError(
            f"{path}: the header has a count of {count} tokens: the shard is empty or damaged. "
            "Write it again or leave it out"
        )
    if size != HEADER_BYTES + count * width.itemsize:
        raise InputError(
            f"{path}: a shard of {count} tokens has {HEADER_BYTES + count * width.itemsize} bytes, "
            f"but this file has {size}: it is incomplete or damaged. Copy or write it again"
        )
    return TokenFile(path, HEADER_BYTES, count, width)


def _open_plain(path: Path, size: int, head: bytes, dtype: str) -> TokenFile:
    if size % 2:
        raise InputError(
            f"{path}: the size of {size} bytes is odd: it is not a file of 16-bit tokens, or it is "
            "truncated. Copy or write it again"
        )
    if dtype == "uint32" and size % 4:
        raise InputError(
            f"{path}: the size of {size} bytes is not a multiple of 4: it is not a file of 32-bit "
            "tokens, or it is truncated. Copy it again, or remove data.dtype"
        )
    if dtype == "uint32":
        return TokenFile(path, 0, size // 4, _U32)
    looks_wide = size % 4 == 0 and _looks_wide(path, TokenFile(path, 0, size // 2, _U16), dtype)
    if looks_wide and dtype == "auto":
        return TokenFile(path, 0, size // 4, _U32, looks_wide=True)
    return TokenFile(path, 0, size // 2, _U16, looks_wide=looks_wide)


def _looks_wide(path: Path, file: TokenFile, dtype: str) -> bool:
    """Return whether a file without a header looks like 32-bit tokens.

    Raises:
        InputError: the tokens look 64-bit or big-endian, and `dtype` is not uint16.
    """
    halves = _sample(file)
    swapped = halves[::-1].byteswap()  # big-endian halves, the upper one first
    as_is = "or set data.dtype=uint16 to read it as 16-bit tokens"
    if dtype == "uint16":
        return looks_32_bit(halves)
    if _looks_64_bit(halves) or _looks_64_bit(swapped):
        raise InputError(f"{path} has 64-bit tokens: save them as uint16 or uint32, {as_is}")
    if looks_32_bit(swapped):
        raise InputError(f"{path} has big-endian tokens: save them little-endian, {as_is}")
    return looks_32_bit(halves)


def _looks_64_bit(halves: TokenArray) -> bool:
    quarters = halves[: len(halves) // 4 * 4].reshape(-1, 4)
    return not quarters[:, 2:].any() and looks_32_bit(quarters[:, :2].reshape(-1))


def _sample(file: TokenFile) -> TokenArray:
    """Return evenly spaced parts of a file, each starting at a multiple of 64 bits."""
    length = _HEAD_BYTES // 2
    if len(file) <= length * _SAMPLES:
        parts = [file[: len(file)]]
    else:
        starts = [(len(file) - length) * n // (_SAMPLES - 1) & ~3 for n in range(_SAMPLES)]
        parts = [file[start : start + length] for start in starts]
    halves: TokenArray = np.concatenate(parts).astype(np.uint16, copy=False)
    return halves
