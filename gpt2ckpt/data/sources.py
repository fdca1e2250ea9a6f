"""Text sources: the files of the user, or the embedded language reference of Python."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpt2ckpt.config.checks import one_of
from gpt2ckpt.config.schema import VOCAB_SIZE, EmbeddedDataConfig, TextDataConfig
from gpt2ckpt.data.embedded import split_sections, topics
from gpt2ckpt.data.files import expand_files
from gpt2ckpt.data.token_files import Tokens
from gpt2ckpt.data.tokenization import encode_text, end_of_text, tokenize_file
from gpt2ckpt.data.tokenizer import gpt2_encoding
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.files.permissions import unreadable_message

EMBEDDED_NAME = "pydoc_data.topics"
SECTIONS, TAIL = "sections", "tail"


@dataclass(frozen=True)
class Source:
    """A text: its name, its size in bytes of UTF-8, and a function that tokenizes it."""

    name: str
    size_bytes: int
    tokens: Callable[[], Iterator[Tokens]]


def text_sources(
    config: EmbeddedDataConfig | TextDataConfig,
) -> tuple[list[Source], list[Source] | None]:
    """Return the training and the validation sources.

    The latter are None if the validation split is held out from the training text.

    Raises:
        ConfigError: no file is set, val_fraction is out of range, or the split is unknown.
        InputError: a file or pattern does not exist.
    """
    if not 0 < config.val_fraction < 1:
        raise ConfigError(
            f"data.val_fraction={config.val_fraction} must be above 0 and below 1: 0.1 holds out a "
            "tenth"
        )
    if isinstance(config, EmbeddedDataConfig):
        one_of("data.split", config.split, (SECTIONS, TAIL))
        return _embedded(config)
    train = file_sources("data.train", config.train)
    return train, None if config.val is None else file_sources("data.val", config.val)


def held_out(tokens: int, val_fraction: float) -> int:
    """Return how many tokens at the end of a text are for validation (rounded down)."""
    return int(tokens * val_fraction)


def check_tokenizer_fits(vocab_size: int) -> None:
    """Raise ConfigError if the vocabulary is smaller than that of GPT-2's tokenizer."""
    if vocab_size < VOCAB_SIZE:
        raise ConfigError(
            f"model.vocab_size={vocab_size} is smaller than the vocabulary of GPT-2's tokenizer: "
            f"set it to at least {VOCAB_SIZE}, or pass the tokens of a different tokenizer with "
            "data=tokens"
        )


def file_sources(setting: str, patterns: str | None) -> list[Source]:
    """Return a source for each file that `patterns` matches; messages name the key `setting`.

    Raises:
        ConfigError: `patterns` is empty.
        InputError: a file or pattern does not exist.
    """
    return [
        Source(str(path), _size(path), partial(_tokens_of_file, path))
        for path in expand_files(setting, patterns)
    ]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise unreadable_message(path, error) from error


def _tokens_of_file(path: Path) -> Iterator[Tokens]:
    return tokenize_file(path, gpt2_encoding())


def _embedded(config: EmbeddedDataConfig) -> tuple[list[Source], list[Source] | None]:
    documents = topics()
    if config.split == TAIL:
        return [_of_documents(EMBEDDED_NAME, documents)], None
    train, val = split_sections(documents, config.val_fraction)
    parts = {"training": train, "held-out": val}
    sources = [_of_documents(f"{EMBEDDED_NAME}, {name} sections", parts[name]) for name in parts]
    return sources[:1], sources[1:]


def _of_documents(name: str, documents: list[str]) -> Source:
    size = sum(len(document.encode()) for document in documents)
    return Source(name, size, partial(_tokens_of_documents, documents))


def _tokens_of_documents(documents: list[str]) -> Iterator[Tokens]:
    for number, document in enumerate(documents):
        if number:
            yield end_of_text()
        yield from encode_text(document, gpt2_encoding())
