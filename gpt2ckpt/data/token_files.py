"""Token files: which format one is in, and its tokens, read when they are asked for.

Three formats are read, all little-endian:
- nanoGPT's: uint16 tokens and nothing else (karpathy/nanoGPT, data/*/prepare.py), or uint32;
- llm.c's for GPT-2: a header of 256 int32 (20240520, version 1, token count, zeros), then uint16
  tokens, so the size is exactly 1024 + 2 * count bytes (karpathy/llm.c, llmc/dataloader.h);
- llm.c's for Llama 3: the same with 20240801, version 7 and uint32 tokens.
The first int32 tells them apart: read as uint16 tokens, llm.c's numbers begin with 55,432 and
55,713, which are outside GPT-2's vocabulary.

Nothing else says how wide the tokens of a headerless file are. Read at the wrong width they are
valid tokens, and a model learns noise. So the values are looked at: of 32-bit tokens the upper
halves are all 0 or tiny, which never happens in a text of 16-bit tokens.
"""

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gpt2ckpt.errors import ConfigError, InputError

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
_HEAD_BYTES = 4096  # what is looked at when a file is opened
_SAMPLES = 16  # that many parts of a headerless file show how wide its tokens are
_FEWEST = 16  # tokens of 32 bits that are enough evidence
_LARGEST_UPPER_HALF = 15  # of a token: vocabularies of up to a million
_OTHER_FILES = {
    b"\x93NUMPY": "a NumPy .npy file: save the array with .tofile()",
    b"PK\x03\x04": "a zip archive (.npz, .pt): save the tokens as plain numbers, with .tofile()",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it",
    b"PAR1": "a Parquet file: write its text to files for data=text",
    b"ARROW1": "an Arrow file: write its text to files for data=text",
    b"MMIDIDX": "the index of a Megatron data set: name its .bin files",
}


class TokenFile:
    """The tokens of an open file, read when they are asked for: `tokens[start:stop]`.

    The file is read, not mapped. Where a mapped file is cut short, or its disk fails, the next look
    at a lost page ends the process by SIGBUS; a short read is an error like any other. The open
    descriptor stays with the file that was opened, even when another takes its name.
    """

    def __init__(
        self, path: Path, offset: int, count: int, dtype: Width, *, looks_wide: bool = False
    ) -> None:
        """Open `path`, whose `count` tokens begin at byte `offset`.

        `looks_wide`: whether no header says how wide they are, and they look like 32-bit tokens.
        """
        self.path, self.offset, self.dtype, self.looks_wide = path, offset, dtype, looks_wide
        self._count = count
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _unreadable(path, error) from error
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of all tokens."""
        return self._count * self.dtype.itemsize

    def status(self) -> os.stat_result:
        """Return the status of the open file, whatever its name stands for by now."""
        try:
            return os.fstat(self._descriptor)
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def __getitem__(self, part: slice) -> Tokens:
        """Return the tokens of the contiguous `part`, shape [stop - start].

        Raises:
            InputError: the file cannot be read, or has become shorter; it is named.
        """
        start, stop, _ = part.indices(self._count)
        tokens: Tokens = np.empty(max(stop - start, 0), dtype=self.dtype)
        position = self.offset + start * self.dtype.itemsize
        try:
            done = os.preadv(self._descriptor, (tokens.data,), position)
            while done < tokens.nbytes:  # the file is shorter, or more than 2 GB were asked for
                rest = tokens.view(np.uint8)[done:].data
                count = os.preadv(self._descriptor, (rest,), position + done)
                if count == 0:
                    self._refuse_short()
                done += count
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return tokens

    def _refuse_short(self) -> None:
        whole, now = self.offset + self.nbytes, self.status().st_size
        raise InputError(
            f"{self.path}: the file was cut short or rewritten while it was in use: it had {whole} "
            f"bytes and has {now} now. Put the whole file back and start again, a training with "
            "+resume=latest"
        )


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: cannot be read: {error.strerror or error}. Check its permissions and its disk"
    )


def open_token_file(path: Path, vocab_size: int, dtype: str = "auto") -> TokenFile:
    """Open one token file after checking its size, header and first tokens.

    Args:
        path: the file.
        vocab_size: the model's vocabulary; no token may reach it.
        dtype: "uint16" or "uint32" for a file without a header, "auto" to look at its values.

    Raises:
        ConfigError: `dtype` is none of these.
        InputError: unreadable, empty, a size or a header that does not fit, another kind of file,
            or a token outside the vocabulary within the first 4 KiB.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"data.dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error
    _refuse_other_files(path, size, head)
    if int.from_bytes(head[:4], "little") in _MAGICS:
        tokens = _open_shard(path, size, head, dtype)
    else:
        tokens = _open_plain(path, size, head, dtype)
    check_vocabulary(str(path), tokens[: len(head) // tokens.dtype.itemsize], 0, vocab_size)
    return tokens


def check_vocabulary(name: str, tokens: Tokens, offset: int, vocab_size: int) -> None:
    """Raise InputError for a token outside the vocabulary; `offset` is that of the first."""
    if len(tokens) and int(tokens.max()) >= vocab_size:
        index = int(np.argmax(tokens >= vocab_size))
        why = "another tokenizer's file, or a damaged one"
        if np.mean(tokens >= vocab_size) > 0.1 and int(tokens.byteswap().max()) < vocab_size:
            why = "a big-endian file, which must be saved little-endian"
        raise InputError(
            f"{name}: token {tokens[index]} at index {offset + index} is not below "
            f"model.vocab_size={vocab_size}: {why}"
        )


def width_warning(files: Sequence[TokenFile]) -> str | None:
    """Return what the user has to know of files without a header that look like 32-bit tokens."""
    wide = [file for file in files if file.looks_wide]
    if not wide:
        return None
    more = f" and {len(wide) - 1} more" if len(wide) > 1 else ""
    widths = " and ".join(sorted({file.dtype.name for file in wide}))
    return (
        f"{wide[0].path}{more} looks like 32-bit tokens, which no header says, and is read as "
        f"{widths}: data.dtype=uint16 or data.dtype=uint32 sets how"
    )


def looks_32_bit(words: TokenArray) -> bool:
    """Return whether 16-bit words of a file, an even number of them, are halves of 32-bit tokens.

    Every upper half is 0 (or tiny, beside lower halves of all sizes), and most lower halves are
    not. Data that is constant, mostly zeros or of a few tokens may be either, and is taken for
    16 bits.
    """
    lower, upper = words[::2], words[1::2]
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
            raise InputError(f"{path}: not plain tokens but {what}")
    if int.from_bytes(head[:4], "big") in _MAGICS:
        raise InputError(f"{path}: a big-endian shard: write it with little-endian numbers")
    if _is_text(head):
        # Pairs of letters are valid token numbers, so text would be trained on as noise.
        raise InputError(f"{path}: looks like text, not tokens: use data=text")


def _is_text(head: bytes) -> bool:
    if len(head) < 64:
        return False
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character that the head ends within
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character.isspace() for character in text)


def _open_shard(path: Path, size: int, head: bytes, dtype: str) -> TokenFile:
    if size < HEADER_BYTES:
        raise InputError(
            f"{path}: the header is cut short: {size} bytes of {HEADER_BYTES}: copy it again"
        )
    magic, version, count = (int(value) for value in np.frombuffer(head[:12], dtype="<i4"))
    width = _HEADERS.get((magic, version))
    if width is None:
        known = next(number for kind, number in _HEADERS if kind == magic)
        raise InputError(
            f"{path}: shard version {version}; only version {known} can be read: write it again, "
            "with gpt2ckpt.prepare or llm.c's scripts"
        )
    if dtype not in ("auto", width.name):
        raise InputError(
            f"{path}: its header says {width.name}, and data.dtype is {dtype}: leave data.dtype out"
        )
    if count < 1:
        raise InputError(
            f"{path}: the header counts {count} tokens: the shard is empty or damaged: write it "
            "again or leave it out"
        )
    if size != HEADER_BYTES + count * width.itemsize:
        raise InputError(
            f"{path}: the header counts {count} tokens, which take "
            f"{HEADER_BYTES + count * width.itemsize} bytes, but the file has {size}: "
            "it is incomplete or damaged: copy or write it again"
        )
    return TokenFile(path, HEADER_BYTES, count, width)


def _open_plain(path: Path, size: int, head: bytes, dtype: str) -> TokenFile:
    if size % 2:
        raise InputError(
            f"{path}: {size} bytes is an odd number: not a file of 16-bit tokens, or cut short: "
            "copy or write it again"
        )
    if dtype == "uint32" and size % 4:
        raise InputError(
            f"{path}: {size} bytes are not a whole number of 32-bit tokens, so it is cut short or "
            "has others: copy it again, or leave data.dtype out"
        )
    if dtype == "uint32":
        return TokenFile(path, 0, size // 4, _U32)
    looks_wide = size % 4 == 0 and _looks_wide(path, TokenFile(path, 0, size // 2, _U16), dtype)
    if looks_wide and dtype == "auto":
        return TokenFile(path, 0, size // 4, _U32, looks_wide=True)
    return TokenFile(path, 0, size // 2, _U16, looks_wide=looks_wide)


def _looks_wide(path: Path, halves: TokenFile, dtype: str) -> bool:
    """Whether a headerless file looks like 32-bit tokens.

    Raises InputError for one of 64-bit or big-endian tokens, unless 16 bits are asked for.
    """
    words = _sample(halves)
    swapped = words[::-1].byteswap()  # big-endian halves, the upper one first
    as_is = "data.dtype=uint16 reads it as 16-bit tokens all the same"
    if dtype == "uint16":
        return looks_32_bit(words)
    if _looks_64_bit(words) or _looks_64_bit(swapped):
        raise InputError(f"{path}: 64-bit tokens: save them as uint16 or uint32 ({as_is})")
    if looks_32_bit(swapped):
        raise InputError(f"{path}: big-endian 32-bit tokens: save them little-endian ({as_is})")
    return looks_32_bit(words)


def _looks_64_bit(words: TokenArray) -> bool:
    quarters = words[: len(words) // 4 * 4].reshape(-1, 4)
    return not quarters[:, 2:].any() and looks_32_bit(quarters[:, :2].reshape(-1))


def _sample(halves: TokenFile) -> TokenArray:
    """Words of evenly spaced parts; each begins where a 64-bit token of a plain file begins."""
    length = _HEAD_BYTES // 2
    if len(halves) <= length * _SAMPLES:
        parts = [halves[: len(halves)]]
    else:
        starts = [(len(halves) - length) * n // (_SAMPLES - 1) & ~3 for n in range(_SAMPLES)]
        parts = [halves[start : start + length] for start in starts]
    words: TokenArray = np.concatenate(parts).astype(np.uint16, copy=False)
    return words
