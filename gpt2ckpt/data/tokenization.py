"""Tokenizes text in pieces; the tokens are exactly those of the complete text.

GPT-2's encoding first splits text by a regular expression and merges bytes only within the parts.
Whitespace occurs only at the start of a part, or in a part that consists of whitespace. So the
expression always splits at two places: between a non-whitespace character and the whitespace after
it, and before the last character of a whitespace run that other text follows. Because it looks no
further ahead, encoding the two sides of such a cut separately gives the same tokens.

Files are read unchanged, including line ends, except for a byte order mark at the start. Text that
looks like a special token is encoded as ordinary text.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpt2ckpt.config.schema import END_OF_TEXT
from gpt2ckpt.data.token_files import Tokens
from gpt2ckpt.errors import InputError
from gpt2ckpt.files.permissions import unreadable_message

if TYPE_CHECKING:
    import tiktoken

PIECE_BYTES = 1 << 20
# Unicode's White_Space, which is what `\s` means to tiktoken; Python's own `\s` has four more.
_WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B)))
_WHITESPACE += "\u2028\u2029\u202f\u205f\u3000"
# The stack of tiktoken overflows in a whitespace run of about 100,000 characters.
_LONG_RUN = re.compile(f"[{_WHITESPACE}]{{1000,}}")


def end_of_text() -> Tokens:
    """Return the token after each document, shape [1]."""
    return np.array([END_OF_TEXT], dtype=np.uint16)


def tokenize_file(
    path: Path, encoding: "tiktoken.Encoding", piece_bytes: int = PIECE_BYTES
) -> Iterator[Tokens]:
    """Yield the tokens of a UTF-8 file and an end-of-text, in order, as uint16 arrays.

    A few pieces are in memory at a time, or more if the file has no whitespace to cut at.

    Raises:
        InputError: the file is unreadable, empty or not UTF-8 (with the offset of the error).
    """
    yield from encode_pieces(read_pieces(path, piece_bytes), encoding)
    yield end_of_text()


def read_pieces(path: Path, piece_bytes: int = PIECE_BYTES) -> Iterator[str]:
    """Yield the text of a UTF-8 file without its byte order mark, in pieces of `piece_bytes`."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    offset, characters = 0, 0
    try:
        with path.open("rb") as file:
            while True:
                data = file.read(piece_bytes)
                pending = len(decoder.getstate()[0])  # bytes of an incomplete character
                text = decoder.decode(data, final=not data)
                if offset == pending:  # nothing was decoded before `data`
                    text = text.removeprefix("\ufeff")
                offset += len(data)
                characters += len(text)
                if text:
                    yield text
                if not data:
                    break
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 at byte {offset - pending + error.start}: "
            "convert the file to UTF-8 or leave it out"
        ) from error
    except OSError as error:
        raise unreadable_message(path, error) from error
    if not characters:
        raise InputError(f"{path}: the file is empty: leave it out")


def encode_pieces(pieces: Iterable[str], encoding: "tiktoken.Encoding") -> Iterator[Tokens]:
    """Yield the tokens of the joined pieces; only pieces without a safe cut are joined."""
    waiting: list[str] = []
    for piece in pieces:
        cut = _last_cut(piece)
        if cut == 0:
            waiting.append(piece)
            continue
        yield from encode_text("".join([*waiting, piece[:cut]]), encoding)
        waiting = [piece[cut:]]
    yield from encode_text("".join(waiting), encoding)


def _last_cut(text: str) -> int:
    """Return the last index at which whitespace follows other text; 0 if there is none."""
    for index in range(len(text) - 1, 0, -1):
        if text[index] in _WHITESPACE and text[index - 1] not in _WHITESPACE:
            return index
    return 0


def encode_text(text: str, encoding: "tiktoken.Encoding") -> Iterator[Tokens]:
    """Yield the tokens of a text as uint16 arrays, cut inside long runs of whitespace."""
    start = 0
    for run in _LONG_RUN.finditer(text):
        if run.end() < len(text):
            yield _encode(text[start : run.end() - 1], encoding)
            start = run.end() - 1
    if start < len(text):
        yield _encode(text[start:], encoding)


def _encode(text: str, encoding: "tiktoken.Encoding") -> Tokens:
    return np.array(encoding.encode_ordinary(text), dtype=np.uint16)
