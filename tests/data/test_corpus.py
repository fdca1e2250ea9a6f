"""Corpora of each kind open, and unusable ones are refused."""

import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from gpt2ckpt.config.schema import (
    END_OF_TEXT,
    VOCAB_SIZE,
    EmbeddedDataConfig,
    TextDataConfig,
    TokensDataConfig,
)
from gpt2ckpt.data import digest
from gpt2ckpt.data.corpus import Corpus, open_corpus, open_validation
from gpt2ckpt.data.tokenizer import gpt2_encoding
from gpt2ckpt.data.tokens import TokenStream
from gpt2ckpt.errors import ConfigError, InputError

ROOT = Path(__file__).parents[2]


def _all(stream: TokenStream) -> list[int]:
    return stream.read(0, len(stream)).tolist()


def _text(train: Path | str, val: Path | None = None, fraction: float = 0.1) -> TextDataConfig:
    return TextDataConfig(
        train=str(train), val=None if val is None else str(val), val_fraction=fraction
    )


def _tokens(path: Path, values: np.ndarray) -> Path:
    values.astype("<u2").tofile(path)
    return path


def test_embedded_data_is_the_python_language_reference() -> None:
    corpus = open_corpus(EmbeddedDataConfig(split="tail"), VOCAB_SIZE, 1024)
    total = len(corpus.train) + len(corpus.val)
    assert total > 100_000
    assert len(corpus.val) == int(total * 0.1)
    text = gpt2_encoding().decode(_all(corpus.train) + _all(corpus.val))
    assert text == "<|endoftext|>".join(topics[name] for name in sorted(topics))
    (file,) = corpus.files
    assert (file.name, file.tokens) == ("pydoc_data.topics", total)
    assert f"{len(corpus.train):,} training" in corpus.description
    assert corpus.digest == open_corpus(EmbeddedDataConfig(split="tail"), VOCAB_SIZE, 64).digest


@pytest.mark.skipif(
    sum(map(len, topics.values())) != 464_970, reason="another Python's text than the one counted"
)
def test_embedded_data_has_the_documented_size() -> None:
    corpus = open_corpus(EmbeddedDataConfig(split="tail"), VOCAB_SIZE, 1024)
    assert len(corpus.train) + len(corpus.val) == 139_015


def test_text_validates_on_the_end_of_the_last_document(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("one two three four\n" * 20)
    (tmp_path / "a.txt").write_text("first document")
    corpus = open_corpus(_text(tmp_path / "*.txt", fraction=0.25), VOCAB_SIZE, 4)
    encode = gpt2_encoding().encode_ordinary
    expected = [*encode("first document"), END_OF_TEXT]
    expected += [*encode("one two three four\n" * 20), END_OF_TEXT]
    assert _all(corpus.train) + _all(corpus.val) == expected
    assert len(corpus.val) == len(expected) // 4
    assert [(Path(file.name).name, file.size_bytes, file.tokens) for file in corpus.files] == [
        ("a.txt", 14, 3),
        ("b.txt", 380, len(expected) - 3),
    ]


def test_text_validates_on_data_val_if_given(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("some training text " * 9)
    (tmp_path / "val.txt").write_text("validation text " * 3)
    corpus = open_corpus(_text(tmp_path / "train.txt", tmp_path / "val.txt"), VOCAB_SIZE, 4)
    encode = gpt2_encoding().encode_ordinary
    assert _all(corpus.train) == [*encode("some training text " * 9), END_OF_TEXT]
    assert _all(corpus.val) == [*encode("validation text " * 3), END_OF_TEXT]
    assert len(corpus.files) == 2


def test_open_validation_needs_no_training_files(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("validation text " * 3)
    tokens = [*gpt2_encoding().encode_ordinary("validation text " * 3), END_OF_TEXT]
    _tokens(tmp_path / "v.bin", np.array(tokens))
    for train in (None, str(tmp_path / "gone")):
        text = TextDataConfig(train=train, val=str(tmp_path / "val.txt"))
        shard = TokensDataConfig(train=train, val=str(tmp_path / "v.bin"))
        for kind, config in (("text", text), ("tokens", shard)):
            val, description = open_validation(config, VOCAB_SIZE, 4)
            assert _all(val) == tokens
            assert description == f"{kind}: 1 file, 0.0 MB, {len(tokens)} validation tokens"
    with pytest.raises(InputError, match=r"validation data has .* data\.val"):
        open_validation(text, VOCAB_SIZE, 64)
    with pytest.raises(ConfigError, match=r"data\.val is missing: pass .*data\.val=PATH"):
        open_validation(TextDataConfig(), VOCAB_SIZE, 4)


def test_open_validation_returns_the_split_that_training_uses(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two three four\n" * 20)
    for config in (_text(tmp_path / "a.txt", fraction=0.25), EmbeddedDataConfig(split="tail")):
        corpus = open_corpus(config, VOCAB_SIZE, 4)
        val, description = open_validation(config, VOCAB_SIZE, 4)
        assert (_all(val), description) == (_all(corpus.val), corpus.description)


def test_token_files_are_joined_in_name_order(tmp_path: Path) -> None:
    for name in ("t2", "t1", "v"):
        _tokens(tmp_path / f"{name}.bin", np.arange(50) + 1000 * int("21v".index(name[-1])))
    config = TokensDataConfig(train=str(tmp_path / "t*.bin"), val=str(tmp_path / "v.bin"))
    corpus = open_corpus(config, VOCAB_SIZE, 16)
    assert _all(corpus.train) == [*range(1000, 1050), *range(50)]
    assert _all(corpus.val) == list(range(2000, 2050))
    assert corpus.description.startswith("tokens: 3 files, 0.0 MB, 100 training and 50 validation")


def _open_tokens(folder: Path) -> Corpus:
    config = TokensDataConfig(train=str(folder / "t*.bin"), val=str(folder / "v.bin"))
    return open_corpus(config, VOCAB_SIZE, 16)


def test_digest_changes_with_every_part_that_it_covers(tmp_path: Path) -> None:
    large = np.random.default_rng(0).integers(0, VOCAB_SIZE, 600_000)
    small = large[:1000]
    _tokens(tmp_path / "t1.bin", large)
    _tokens(tmp_path / "t2.bin", small)
    _tokens(tmp_path / "v.bin", small)
    digests = [_open_tokens(tmp_path).digest]
    assert len(digests[0]) == 32 and _open_tokens(tmp_path).digest == digests[0]

    changed = large.copy()
    changed[-1] ^= 1
    for values in (changed, large[:-1], large[::-1], np.roll(large, 1)):
        _tokens(tmp_path / "t1.bin", values)
        digests.append(_open_tokens(tmp_path).digest)
    _tokens(tmp_path / "t1.bin", large)
    edited = small.copy()
    edited[500] ^= 1
    _tokens(tmp_path / "t2.bin", edited)
    digests.append(_open_tokens(tmp_path).digest)
    _tokens(tmp_path / "t2.bin", large)
    _tokens(tmp_path / "t1.bin", small)  # the two files swapped
    digests.append(_open_tokens(tmp_path).digest)
    (tmp_path / "t1.bin").unlink()
    digests.append(_open_tokens(tmp_path).digest)
    assert len(set(digests)) == len(digests)

    (tmp_path / "t2.bin").rename(tmp_path / "t9.bin")  # only the name
    assert _open_tokens(tmp_path).digest == digests[-1]


@pytest.mark.parametrize("size", [1000, 600_000])
def test_digests_cover_the_validation_split(tmp_path: Path, size: int) -> None:
    values = np.random.default_rng(0).integers(0, VOCAB_SIZE, size)
    _tokens(tmp_path / "t1.bin", values)
    _tokens(tmp_path / "v.bin", values[::-1])
    before = _open_tokens(tmp_path)
    changed = values[::-1].copy()
    changed[-1] ^= 1
    _tokens(tmp_path / "v.bin", changed)
    after = _open_tokens(tmp_path)
    assert before.digest != after.digest
    old, new = before.contents.known() or [], after.contents.known() or []
    assert old[0] == new[0] and old[1] != new[1]


def test_digest_covers_validation_text(tmp_path: Path) -> None:
    train, val = tmp_path / "train.txt", tmp_path / "val.txt"
    train.write_text("some training text " * 9)
    val.write_text("validation text " * 3)
    before = open_corpus(_text(train, val), VOCAB_SIZE, 4)
    val.write_text("validation test " * 3)
    after = open_corpus(_text(train, val), VOCAB_SIZE, 4)
    assert before.digest != after.digest
    assert before.contents.known() != after.contents.known()
    before = open_corpus(_text(val, None, 0.4), VOCAB_SIZE, 2)
    val.write_text("validation test " * 2 + "validation text ")
    after = open_corpus(_text(val, None, 0.4), VOCAB_SIZE, 2)
    assert _all(before.train) == _all(after.train) and before.digest != after.digest


def test_a_different_split_has_a_different_digest(tmp_path: Path) -> None:
    """The tokens and the contents of the file are the same."""
    (tmp_path / "a.txt").write_text("one two three four\n" * 20)
    first, second = (
        open_corpus(_text(tmp_path / "a.txt", None, part), VOCAB_SIZE, 4) for part in (0.2, 0.3)
    )
    assert first.digest != second.digest
    assert first.contents.known() == second.contents.known()


def _warnings(config: TextDataConfig | TokensDataConfig) -> tuple[str, ...]:
    return open_corpus(config, VOCAB_SIZE, 4).warnings


def test_validation_files_in_the_training_data_are_a_warning(tmp_path: Path) -> None:
    for name, start in (("a", 0), ("b", 500), ("v", 900)):
        _tokens(tmp_path / f"{name}.bin", np.arange(start, start + 50))
    (tmp_path / "hard.bin").hardlink_to(tmp_path / "v.bin")
    (tmp_path / "soft.bin").symlink_to(tmp_path / "v.bin")
    _tokens(tmp_path / "copy.bin", np.arange(900, 950))
    val = str(tmp_path / "v.bin")
    for train in ("*.bin", "v.bin", "hard.bin", "soft.bin", "copy.bin", "[ab].bin"):
        found = _warnings(TokensDataConfig(train=str(tmp_path / train), val=val))
        assert len(found) == (train != "[ab].bin")
        assert all("v.bin of data.val is also in data.train" in line for line in found)
    both = TokensDataConfig(train=str(tmp_path / "*.bin"), val=str(tmp_path / "[ab].bin"))
    assert "a.bin and 1 more of data.val" in _warnings(both)[0]


def test_overlap_is_found_by_inode_before_digests_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "AT_ONCE", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = str(_tokens(tmp_path / "v.bin", np.arange(50)))
    [line] = _warnings(TokensDataConfig(train=path, val=path))
    assert "v.bin of data.val is also in data.train" in line


def test_validation_text_in_the_training_text_is_a_warning(tmp_path: Path) -> None:
    for name in ("a", "b", "v"):
        (tmp_path / f"{name}.txt").write_text(f"text of {name}: " * 9)
    [line] = _warnings(_text(f"{tmp_path}/*.txt", tmp_path / "v.txt"))
    assert "v.txt of data.val is also in data.train" in line
    assert _warnings(_text(f"{tmp_path}/[ab].txt", tmp_path / "v.txt")) == ()


def test_digest_of_text_covers_all_tokens(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("word " * 600_000 + "end")
    first = open_corpus(_text(path), VOCAB_SIZE, 64)
    path.write_text("word " * 300_000 + "line " + "word " * 299_999 + "end")
    second = open_corpus(_text(path), VOCAB_SIZE, 64)
    assert len(first.train) == len(second.train)
    assert first.digest != second.digest


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_val_fraction_out_of_range_is_a_config_error(fraction: float, tmp_path: Path) -> None:
    for config in (EmbeddedDataConfig(val_fraction=fraction), _text(tmp_path, None, fraction)):
        with pytest.raises(ConfigError, match=r"data\.val_fraction=.* must be above 0 and below 1"):
            open_corpus(config, VOCAB_SIZE, 64)


def test_vocabulary_too_small_for_text_is_a_config_error(tmp_path: Path) -> None:
    for config in (EmbeddedDataConfig(split="tail"), _text(tmp_path)):
        with pytest.raises(ConfigError, match=r"model\.vocab_size=50256 .* at least 50257"):
            open_corpus(config, 50_256, 64)
    assert open_corpus(EmbeddedDataConfig(split="tail"), 50_304, 64).train.vocab_size == 50_304


def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    path = _tokens(tmp_path / "a.bin", np.arange(100))
    config = TokensDataConfig(train=str(path), val=str(path))
    assert len(open_corpus(config, 100, 8).train) == 100
    with pytest.raises(InputError, match=r"a\.bin: token 99 at index 99"):
        open_corpus(config, 99, 8)


def test_too_few_tokens_error_names_the_number_needed(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("one two three")  # three tokens and an end-of-text
    with pytest.raises(
        InputError, match=r"training data has 2 tokens, but one block needs 9 .*model\.block_size"
    ):
        open_corpus(_text(path, None, 0.5), VOCAB_SIZE, 8)
    with pytest.raises(
        InputError, match=r"validation data has 2 tokens.* needs 3 .*larger data\.val_fraction"
    ):
        path.write_text("one two three four five six seven eight nine")
        open_corpus(_text(path, None, 0.2), VOCAB_SIZE, 2)
    with pytest.raises(InputError, match=r"validation data has 4 tokens.*more data in data\.val"):
        long, short = tmp_path / "long.txt", tmp_path / "short.txt"
        long.write_text("word " * 99)
        short.write_text("one two three")
        open_corpus(_text(long, short), VOCAB_SIZE, 4)


def test_error_names_an_unusable_file(tmp_path: Path) -> None:
    good = tmp_path / "good.txt"
    good.write_text("text " * 99)
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match=r"bad\.txt: not UTF-8 at byte 3"):
        open_corpus(_text(f"{good},{tmp_path}/bad.txt"), VOCAB_SIZE, 8)
    with pytest.raises(InputError, match=r"empty\.txt: the file is empty"):
        open_corpus(_text(good, tmp_path / "empty.txt"), VOCAB_SIZE, 8)
    with pytest.raises(InputError, match=r"data\.val=.*gone\.txt.: no such file"):
        open_corpus(_text(good, tmp_path / "gone.txt"), VOCAB_SIZE, 8)
    with pytest.raises(ConfigError, match=r"data\.train is not set"):
        open_corpus(TokensDataConfig(), VOCAB_SIZE, 8)


def test_opening_a_corpus_does_not_import_torch() -> None:
    code = (
        "import sys; import gpt2ckpt.data.corpus, gpt2ckpt.data.shards; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'tiktoken', 'hydra')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
