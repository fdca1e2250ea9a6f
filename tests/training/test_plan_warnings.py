"""Warnings about unusual plans appear before the first step."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from training_helpers import start_of, train

from gpt2ckpt.training import reporting
from gpt2ckpt.training.hardware import choose_hardware
from gpt2ckpt.training.plan_warnings import (
    memory_needed,
    memory_warnings,
    plan_warnings,
    repeated_keys,
    time_warnings,
)
from gpt2ckpt.training.validate_run import validate_run

DAY = 86_400.0


def warnings(token_data: Any, tmp_path: Path, *words: str) -> list[str]:
    overrides = [*token_data.overrides, "trainer.max_steps=400", *words]
    return plan_warnings(validate_run(start_of(overrides, tmp_path / "run")))


def test_usual_plan_has_no_warning(token_data: Any, tmp_path: Path) -> None:
    assert warnings(token_data, tmp_path) == []
    assert warnings(token_data, tmp_path, "schedule.steps=400") == []
    assert warnings(token_data, tmp_path, "schedule=constant") == []


def test_key_with_two_values_is_a_warning() -> None:
    repeated = ["optimizer.lr=1e-3", "seed=2", "optimizer.lr=2e-3", "seed=2", "name=a"]
    assert repeated_keys(repeated) == [
        "optimizer.lr is set to 1e-3, then to 2e-3: the last value is used. Remove the rest"
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trainer.max_steps=3101"], ["reads its training data, 2,000 tokens, 100 times"]),
        (["trainer.max_steps=null", "trainer.max_epochs=101"], ["tokens, 101 times"]),
        (["trainer.max_steps=3100"], []),
        (["trainer.max_steps=3101", "trainer.overfit=true"], []),
        (
            ["schedule.warmup_steps=1600"],
            ["the warm-up of 1,600 steps is longer than the run of 400: the learning rate only "
             "reaches 25% of optimizer.lr"],
        ),
        (
            ["schedule.steps=1000"],
            ["schedule.steps=1,000 is longer than the run of 400 steps: the learning rate ends at"],
        ),
        (
            ["schedule.steps=100"],
            ["schedule.steps=100 is shorter than the run of 400 steps: the last 300 train at 10%"],
        ),
        (
            ["schedule=wsd", "schedule.steps=100", "schedule.decay_steps=10"],
            ["the last 300 train at 0% of optimizer.lr and change nothing"],
        ),
        (
            ["schedule=wsd", "schedule.decay_steps=399"],
            ["schedule.warmup_steps=5 and schedule.decay_steps=399 together are longer"],
        ),
        (
            ["trainer.log_every=500", "trainer.eval_every=500", "trainer.sample_every=500",
             "checkpoint.save_every=500"],
            ["never reached in 400 steps: trainer.log_every=500 (only the first and the last step "
             "are logged), trainer.eval_every=500 (evaluated only at the end), "
             "trainer.sample_every=500 (no text sample), checkpoint.save_every=500 (saved only at "
             "the end and on a signal)"],
        ),
        (["checkpoint.save_every=500", "checkpoint.enabled=false"], []),
        (["trainer.eval_every=400"], []),
    ],
)  # fmt: skip
def test_each_unusual_setting_has_one_warning(
    token_data: Any, tmp_path: Path, words: list[str], expected: list[str]
) -> None:
    found = warnings(token_data, tmp_path, *words)
    assert len(found) == len(expected), found
    for sentence, part in zip(found, expected, strict=True):
        assert part in sentence


def test_epochs_include_steps_with_other_batch_size(token_data: Any, tmp_path: Path) -> None:
    train([*token_data.overrides, "trainer.max_steps=31"], tmp_path / "run")
    words = ["+resume=latest", "trainer.max_steps=41", "trainer.batch_size=8"]
    validated = validate_run(start_of(words, tmp_path / "run"))
    assert validated.epochs == pytest.approx((31 * 2 + 10 * 8) / 62)
    assert validated.total_tokens == (31 * 2 + 10 * 8) * validated.config.model.block_size


def test_model_larger_than_device_memory_is_a_warning() -> None:
    [sentence] = memory_warnings(25_000_000_000, 8_000_000_000)
    assert "take 25.0 GB, and the device has 8.0 GB" in sentence
    assert memory_warnings(8_000_000_000, 8_000_000_000) == []


def test_memory_needed_counts_weights_gradients_and_moments(
    token_data: Any, tmp_path: Path
) -> None:
    config = validate_run(start_of(token_data.overrides, tmp_path / "run")).config
    shape = config.model
    parameters = (shape.vocab_size + shape.block_size) * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    assert memory_needed(config, ranks=2) == 16 * parameters
    config.trainer.parallel = "fsdp"
    assert memory_needed(config, ranks=2) == 8 * parameters


def test_months_of_training_are_a_warning_once_speed_is_known() -> None:
    [sentence] = time_warnings(400 * DAY, 599_998)
    assert "the 599,998 steps left take 1y 035d" in sentence
    assert time_warnings(29 * DAY, 10) == time_warnings(None, 10) == []


def test_long_training_warns_once_after_second_step(
    token_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    asked: list[tuple[float, int]] = []

    def slow(seconds: float, steps: int) -> list[str]:
        asked.append((seconds, steps))
        return time_warnings(40 * DAY, steps)

    monkeypatch.setattr(reporting, "time_warnings", slow)
    train([*token_data.overrides, "trainer.max_steps=8"], tmp_path / "run")
    assert [(seconds > 0, steps) for seconds, steps in asked] == [(True, 6)]
    text = " ".join(r.getMessage().strip() for r in caplog.records if r.levelno == logging.WARNING)
    assert "warning      at this speed the 6 steps left take 40d 00h" in text


def test_hardware_reports_memory() -> None:
    hardware = choose_hardware("cpu", "float32", 1)
    assert hardware.memory_bytes > 1e8
    assert replace(hardware, threads=2).memory_bytes == hardware.memory_bytes
