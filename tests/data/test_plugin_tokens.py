"""Tokens of a plugin are checked at each read, and misuse is one message that names the plugin."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gpt2ckpt.config.options import OPTIONS, Option, PluginError
from gpt2ckpt.data import digest
from gpt2ckpt.data.corpus import Corpus, open_corpus, open_validation
from gpt2ckpt.errors import InputError
from gpt2ckpt.extend import TokenData

NAME = "data 'own' (plugin my_data)"


@dataclass
class OwnConfig:
    size: int = 100


class Computed:
    """Tokens that are computed when they are read; each slice is recorded."""

    def __init__(self, size: int) -> None:
        self.size, self.reads = size, list[tuple[int, int]]()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> np.ndarray:
        self.reads.append((part.start, part.stop))
        return np.arange(part.start, part.stop) % 7


class Fickle(Computed):
    def __getitem__(self, part: slice) -> np.ndarray:
        self.reads.append((part.start, part.stop))
        return np.full(part.stop - part.start, len(self.reads))


class Failing(Computed):
    def __getitem__(self, part: slice) -> np.ndarray:
        raise KeyError("no such token")


def opened(monkeypatch: pytest.MonkeyPatch, built: Any, block_size: int = 8) -> Corpus:
    option = Option("data", "own", OwnConfig, lambda config: built, "my_data")
    monkeypatch.setitem(OPTIONS["data"], "own", option)
    return open_corpus(OwnConfig(), 64, block_size)


def test_arrays_and_computed_tokens_are_the_same_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [
        (np.arange(100) % 7).astype(dtype)
        for dtype in (np.int64, np.int32, np.uint16, np.uint8, ">i4")
    ]
    expected = opened(monkeypatch, TokenData(Computed(100), Computed(20), "counting"))
    assert expected.description == "own: counting, 100 training and 20 validation tokens"
    for train in [*arrays, (np.arange(100) % 7).tolist()]:
        corpus = opened(monkeypatch, TokenData(train, Computed(20), "counting"))
        assert corpus.digest == expected.digest
        assert corpus.contents.known() == expected.contents.known() is not None
        assert corpus.train.read(90, 10).tolist() == [6, 0, 1, 2, 3, 4, 5, 6, 0, 1]
    val, _ = open_validation(OwnConfig(), 64, 8)
    assert val.read(0, 20).tolist() == [number % 7 for number in range(20)]


def test_every_token_is_part_of_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "_CHUNK_TOKENS", 64)
    tokens = np.arange(1000) % 7
    before = opened(monkeypatch, TokenData(tokens, tokens[:20])).contents.known()
    for index in (0, 517, 999):
        changed = tokens.copy()
        changed[index] += 1
        assert opened(monkeypatch, TokenData(changed, tokens[:20])).contents.known() != before


def test_many_tokens_are_read_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "AT_ONCE", 4 * 100)
    train = Computed(1 << 20)
    corpus = opened(monkeypatch, TokenData(train, Computed(20)))
    assert corpus.contents.known() is None
    assert sum(stop - start for start, stop in train.reads) < len(train) / 2  # samples
    corpus.contents.start()
    known = corpus.contents.known(60)
    monkeypatch.setattr(digest, "AT_ONCE", 1 << 30)
    assert known == opened(monkeypatch, TokenData(Computed(1 << 20), Computed(20))).contents.known()


def test_same_tokens_for_training_and_validation_are_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus = opened(monkeypatch, TokenData(Computed(100), Computed(100)))
    assert corpus.warnings == (f"{NAME} validates on the tokens that it trains on",)


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (None, "the builder returned a NoneType; it must return extend.TokenData(train, val"),
        (TokenData([], [1] * 20), ": train has no tokens"),
        (TokenData([1] * 20, np.zeros(0)), ": val has no tokens"),
        (TokenData([1] * 8, [1] * 20), "the training data has 8 tokens, but one block needs 9"),
        (TokenData([1] * 20, [1] * 8), "the validation data has 8 tokens, but one block needs 9"),
        (TokenData([1] * 30, [1.5] * 20), ": val[0:20] has the shape [20] and the dtype float64"),
        (TokenData([[1, 2]] * 20, [1] * 20), ": train[0:20] has the shape [20, 2] and the dtype"),
        (TokenData(["a"] * 20, [1] * 20), "and the dtype <U1; it must be 20 integers in one"),
        (TokenData([1] * 19 + [64], [1] * 20), ": train[19] is 64; tokens must be at least 0 and "
         "below model.vocab_size=64"),
        (TokenData([1] * 19 + [-1], [1] * 20), ": train[19] is -1; tokens must be"),
        (TokenData([2**40] * 20, [1] * 20), ": train[0] is 1099511627776; tokens must be"),
        (TokenData(None, [1] * 20), " raised TypeError: object of type 'NoneType' has no len()"),
        (TokenData(Failing(20), [1] * 20), " raised KeyError: 'no such token'"),
        (TokenData(Fickle(20), [1] * 20), ": train returns different tokens each time it is read"),
    ],
)  # fmt: skip
def test_misuse_is_one_message_that_names_the_plugin(
    monkeypatch: pytest.MonkeyPatch, built: Any, message: str
) -> None:
    with pytest.raises((InputError, PluginError)) as raised:
        opened(monkeypatch, built)
    assert message in str(raised.value) and NAME in str(raised.value)
    assert "\n" not in str(raised.value)


def test_token_after_the_first_read_that_is_too_large_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Changing(Computed):
        def __getitem__(self, part: slice) -> np.ndarray:
            tokens = super().__getitem__(part)
            return tokens + 64 if len(self.reads) > 10 else tokens

    corpus = opened(monkeypatch, TokenData(Changing(100), Computed(20)))
    with pytest.raises(InputError, match=r"train\[50\] is 65; tokens must be"):
        for _ in range(20):
            corpus.train.read(50, 9)
