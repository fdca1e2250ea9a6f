"""The entries that a run passes to its loggers, also across a resume."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from training_helpers import events, train

from gpt2ckpt.loggers.metrics_file import to_json
from gpt2ckpt.runs.layout import JOBS, run_title
from gpt2ckpt.training import session
from gpt2ckpt.units import perplexity

WORDS = ["trainer.max_steps=4", "trainer.eval_every=2", "trainer.eval_steps=1"]


def test_loggers_get_tokens_best_loss_and_hyperparameters(token_data: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train([*token_data.overrides, *WORDS, "logger=tensorboard"], run)
    train(["+resume=latest", "trainer.max_steps=6"], run)
    tokens_per_step = 2 * 32
    assert [event["tokens_seen"] for event in events(run)] == [
        step * tokens_per_step for step in range(1, 7)
    ]
    assert not any("mfu" in event for event in events(run))
    best: list[float] = []
    for event in events(run, "val_loss"):
        best.append(min([event["val_loss"], *best]))
        assert event["best_val_loss"] == best[-1]
        assert event["tokens_seen"] == event["step"] * tokens_per_step
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert [scalar.step for scalar in board.Scalars("val/best_loss")] == [2, 4, 6]
    content = board.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    assert values["optimizer.kind"].string_value == "adamw"
    assert values["trainer.max_steps"].number_value == 4


def test_mfu_is_logged_when_peak_is_known(
    token_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.Session, "_peak_tokens_per_s", lambda _: 1e9)
    train([*token_data.overrides, "trainer.max_steps=2"], tmp_path / "run")
    for event in events(tmp_path / "run"):
        assert event["mfu"] == pytest.approx(event["tokens_per_s"] / 1e9)


def test_run_title_is_directory_and_includes_sweep(tmp_path: Path) -> None:
    sweep = tmp_path / "gpt2_sweep_20260102_030405"
    (sweep / "lr" / "0").mkdir(parents=True)
    assert run_title(sweep / "lr" / "0") == "0"
    (sweep / JOBS).touch()
    assert run_title(sweep / "lr" / "0") == "gpt2_sweep_20260102_030405/lr/0"
    assert run_title(tmp_path / "mine") == "mine"


def test_perplexity_overflow_is_infinite_and_valid_json() -> None:
    assert perplexity(0.0) == 1.0 and perplexity(709.0) < perplexity(710.0) == float("inf")
    assert to_json({"perplexity": perplexity(710.0)}) == '{"perplexity": "Infinity"}'
