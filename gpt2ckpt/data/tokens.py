"""Token files and the stream that joins them.

Two formats are read, both little-endian uint16:
- nanoGPT's: tokens and nothing else (karpathy/nanoGPT, data/*/prepare.py);
- llm.c's: a header of 256 int32 (20240520, version 1, token count, zeros), then the tokens, so
  the size is exactly 1024 + 2 * count bytes (karpathy/llm.c, llmc/dataloader.h).
The first int32 tells them apart: read as tokens, llm.c's number begins with 55,432, which is
outside GPT-2's vocabulary.

Files are mapped, not loaded. A file that is cut short while it is mapped kills the process at the
next read of the lost part (SIGBUS); replace a token file by renaming a new one over it, which
leaves the mapped one alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gpt2ckpt.errors import InputError

Tokens: TypeAlias = npt.NDArray[np.uint16]

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 1024
_HEAD_BYTES = 4096  # what is looked at when a file is opened


@dataclass(frozen=True)
class Piece:
    """Part of a stream: tokens of one file, uint16, mapped or in memory. `name` is for messages."""

    name: str
    tokens: Tokens


class TokenStream:
    """Pieces read as one sequence of tokens.

    Every read is checked against the vocabulary: checking a whole corpus at the start would read
    all of it, and a token outside the vocabulary must never index an embedding.
    """

    def __init__(self, pieces: Sequence[Piece], vocab_size: int) -> None:
        self.pieces = tuple(piece for piece in pieces if len(piece.tokens))
        self.vocab_size = vocab_size
        lengths = [len(piece.tokens) for piece in self.pieces]
        self._ends = np.cumsum(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.pieces else 0

    def read(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Tokens start .. start+count-1, int64, shape [count].

        Raises:
            IndexError: the range is not inside the stream.
            InputError: a token is outside the vocabulary; the file is named.
        """
        if start < 0 or count < 0 or start + count > len(self):
            raise IndexError(f"tokens {start}..{start + count} of a stream of {len(self)}")
        out = np.empty(count, dtype=np.int64)
        done = 0
        index = int(np.searchsorted(self._ends, start, side="right"))
        while done < count:
            piece = self.pieces[index]
            offset = start + done - (int(self._ends[index]) - len(piece.tokens))
            part = piece.tokens[offset : offset + count - done]
            _check_vocabulary(piece.name, part, offset, self.vocab_size)
            out[done : done + len(part)] = part
            done += len(part)
            index += 1
        return out

    def split(self, at: int) -> tuple["TokenStream", "TokenStream"]:
        """The first `at` tokens and the rest, as two streams over the same memory."""
        first: list[Piece] = []
        rest: list[Piece] = []
        begin = 0
        for piece in self.pieces:
            cut = min(max(at - begin, 0), len(piece.tokens))
            first.append(Piece(piece.name, piece.tokens[:cut]))
            rest.append(Piece(piece.name, piece.tokens[cut:]))
            begin += len(piece.tokens)
        return TokenStream(first, self.vocab_size), TokenStream(rest, self.vocab_size)


def count_blocks(tokens: int, block_size: int) -> int:
    """How many blocks of `block_size` inputs, each with its target, `tokens` tokens hold."""
    return max(tokens - 1, 0) // block_size


def open_token_file(path: Path, vocab_size: int) -> Piece:
    """Maps one token file, either format, after checking its size, header and first tokens.

    Raises:
        InputError: unreadable, empty, an odd number of bytes, a header that does not fit, another
            kind of file, or a token outside the vocabulary within the first 4 KiB.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        start = _start_of_tokens(path, size, head)
        mapped = np.memmap(path, dtype="<u2", mode="r", offset=start, shape=((size - start) // 2,))
    except (OSError, ValueError) as error:  # ValueError: the file shrank in the meantime
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}") from error
    tokens: Tokens = mapped.view(np.ndarray)  # slices of a memmap object are slow to make
    _check_vocabulary(str(path), tokens[: (len(head) - start) // 2], 0, vocab_size)
    return Piece(str(path), tokens)


def _start_of_tokens(path: Path, size: int, head: bytes) -> int:
    """The offset in bytes of the first token. Refuses a file that is in neither format."""
    if size == 0:
        raise InputError(f"{path}: the file is empty")
    if int.from_bytes(head[:4], "little") == MAGIC:
        return _check_header(path, size, head)
    if head.startswith(b"\x93NUMPY"):
        raise InputError(f"{path}: a NumPy .npy file, not plain tokens: save it with .tofile()")
    if len(head) >= 64 and head.isascii() and b"\0" not in head:
        # Pairs of letters are valid token numbers, so text would be trained on as noise.
        raise InputError(f"{path}: looks like text, not tokens: use data=text")
    if size % 2:
        raise InputError(
            f"{path}: {size} bytes is an odd number: not a file of 16-bit tokens, or cut short"
        )
    return 0


def _check_header(path: Path, size: int, head: bytes) -> int:
    if size < HEADER_BYTES:
        raise InputError(f"{path}: the header is cut short: {size} bytes instead of {HEADER_BYTES}")
    version, count = (int(value) for value in np.frombuffer(head[4:12], dtype="<i4"))
    if version != VERSION:
        raise InputError(f"{path}: shard version {version}; only version {VERSION} can be read")
    if count < 1:
        raise InputError(f"{path}: the header counts {count} tokens: the shard is empty or damaged")
    if size != HEADER_BYTES + 2 * count:
        raise InputError(
            f"{path}: the header counts {count} tokens, which take {HEADER_BYTES + 2 * count} "
            f"bytes, but the file has {size}: it is incomplete or damaged"
        )
    return HEADER_BYTES


def _check_vocabulary(name: str, tokens: Tokens, offset: int, vocab_size: int) -> None:
    if len(tokens) and int(tokens.max()) >= vocab_size:
        index = int(np.argmax(tokens >= vocab_size))
        raise InputError(
            f"{name}: token {tokens[index]} at index {offset + index} is not below "
            f"model.vocab_size={vocab_size}: another tokenizer's file, or a damaged one"
        )
