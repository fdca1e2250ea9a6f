"""The default split of the embedded text is deterministic and without overlap."""

import re

import pytest

from gpt2ckpt.config.schema import END_OF_TEXT, VOCAB_SIZE, EmbeddedDataConfig
from gpt2ckpt.data.corpus import open_corpus, open_validation
from gpt2ckpt.data.embedded import split_sections, topics
from gpt2ckpt.data.tokenizer import gpt2_encoding
from gpt2ckpt.errors import ConfigError


def tokens_of(split: str, fraction: float = 0.1) -> tuple[list[int], list[int]]:
    corpus = open_corpus(EmbeddedDataConfig(fraction, split), VOCAB_SIZE, 128)
    train, val = (stream.read(0, len(stream)).tolist() for stream in (corpus.train, corpus.val))
    return train, val


def white(tokens: list[int]) -> float:
    """Return the share of tokens that are whitespace."""
    encoding = gpt2_encoding()
    return sum(not encoding.decode_single_token_bytes(t).strip() for t in tokens) / len(tokens)


def overlap(train: list[int], val: list[int], length: int = 13) -> float:
    """Return the share of the 13-token sequences of `val` that also occur in `train`."""
    known = {tuple(train[i : i + length]) for i in range(len(train) - length + 1)}
    asked = [tuple(val[i : i + length]) for i in range(len(val) - length + 1)]
    return sum(sequence in known for sequence in asked) / len(asked)


def test_held_out_sections_resemble_the_rest_without_repeating_it() -> None:
    train, val = tokens_of("sections")
    assert 0.08 < len(val) / (len(train) + len(val)) < 0.12
    assert len(train) > 90_000
    assert overlap(train, val) < 0.03
    assert abs(white(train) - white(val)) < 0.1
    assert val.count(END_OF_TEXT) >= 8, "sections from all over the text"
    tail_train, tail_val = tokens_of("tail")
    assert overlap(tail_train, tail_val) > 0.2 and white(tail_val) - white(tail_train) > 0.1


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_held_out_sections_approximate_val_fraction(fraction: float) -> None:
    train, val = tokens_of("sections", fraction)
    assert len(val) / (len(train) + len(val)) == pytest.approx(fraction, abs=0.03)


def test_each_paragraph_occurs_once_in_both_splits_together() -> None:
    train, val = split_sections(topics(), 0.1)
    paragraphs = [
        " ".join(part.split())
        for document in (*train, *val)
        for part in re.split(r"\n[ \t]*\n", document)
        if part.strip()
    ]
    assert len(paragraphs) > 1000
    assert len(set(paragraphs)) == len(paragraphs)
    assert (train, val) == split_sections(topics(), 0.1)


def test_sections_that_repeat_others_are_not_held_out() -> None:
    def section(name: str, body: str) -> str:
        return f"{name}\n{'=' * len(name)}\n\n" + f"{body}\n\n"

    same = " ".join(f"word{number}" for number in range(40))
    own = [
        "".join(section(f"Of {topic} and {part}", f"{same} {topic} {part}") for part in "abcdef")
        for topic in ("x", "y", "z")
    ]
    train, val = split_sections(own, 0.3)
    assert (len(train), val) == (3, [])
    others = [" ".join(f"{n}{part}" for n in range(40)) for part in "abcdef"]
    text = "".join(section(f"Of {part[1]}", part) for part in others)
    train, val = split_sections([text], 0.34)
    assert sum(len(part.split()) for part in val) == 2 * (40 + 3)
    assert "".join(sorted([*train, *val])).count("Of ") == 6
    assert split_sections(["", "no heading at all"], 0.1) == (["no heading at all\n"], [])


def test_open_validation_is_the_same_split_and_unknown_split_is_refused() -> None:
    config = EmbeddedDataConfig(split="sections")
    val, _ = open_validation(config, VOCAB_SIZE, 128)
    assert val.read(0, len(val)).tolist() == tokens_of("sections")[1]
    with pytest.raises(ConfigError, match=r"data\.split is 'sectoins'.* Did you mean sections"):
        open_corpus(EmbeddedDataConfig(split="sectoins"), VOCAB_SIZE, 128)
