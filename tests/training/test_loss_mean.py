"""The logged mean of the training loss covers every step since the last logged step."""

import logging
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from training_helpers import events, train

from gpt2ckpt.checkpoint.state import CheckpointState

STEPS = 14
SAVING = ["checkpoint.save_every=3", "checkpoint.keep_rolling=99", f"trainer.max_steps={STEPS}"]
LOGGED = [1, 4, 8, 12, 14]


def means(run: Path) -> dict[int, float]:
    return {event["step"]: event["train_loss_mean"] for event in events(run)}


@pytest.fixture(scope="module")
def exact(token_data: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Return the loss of each step."""
    run = tmp_path_factory.mktemp("exact") / "run"
    train([*token_data.overrides, *SAVING], run)
    assert [event["train_loss_mean"] for event in events(run)] == [
        event["train_loss"] for event in events(run)
    ]
    return {event["step"]: event["train_loss"] for event in events(run)}


def test_mean_covers_steps_since_last_logged_step(
    token_data: Any, tmp_path: Path, exact: dict[int, float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train([*token_data.overrides, *SAVING, "trainer.log_every=4"], tmp_path / "run")
    assert list(means(tmp_path / "run")) == LOGGED
    for before, step in zip([0, *LOGGED], LOGGED, strict=False):
        expected = fmean(exact[n] for n in range(before + 1, step + 1))
        assert means(tmp_path / "run")[step] == pytest.approx(expected, rel=1e-12)
    assert {e["step"]: e["train_loss"] for e in events(tmp_path / "run")} == {
        step: exact[step] for step in LOGGED
    }
    shown = re.findall(r"^step +(\d+)/14 .*?loss +([\d.]+)", _messages(caplog), re.MULTILINE)
    assert shown == [(str(n), f"{mean:.4f}") for n, mean in means(tmp_path / "run").items()]
    assert f"train {means(tmp_path / 'run')[14]:.4f} (mean of the last 2 steps)" in _messages(
        caplog
    )


def test_resume_between_logged_steps_logs_mean_of_uninterrupted_run(
    token_data: Any, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train([*token_data.overrides, *SAVING, "trainer.log_every=4"], run)
    undisturbed = means(run)
    for step in (3, 6, 9, 12):  # in the middle of an interval and at its end
        checkpoint = sorted(run.rglob(f"rolling_step_{step:06d}.pt"))[0]
        train([f"+resume={checkpoint}"], run)
        assert means(run) == undisturbed, f"resumed from step {step}"


def test_resume_from_checkpoint_without_sum_averages_own_steps(
    token_data: Any, tmp_path: Path, exact: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints of earlier versions do not hold the losses since the last logged step."""
    to_dict = CheckpointState.to_dict

    def stored_as_before(state: CheckpointState) -> dict[str, Any]:
        stored = to_dict(state)
        del stored["data"]["unlogged"]
        return stored

    monkeypatch.setattr(CheckpointState, "to_dict", stored_as_before)
    run = tmp_path / "run"
    train([*token_data.overrides, *SAVING, "trainer.log_every=4"], run)
    monkeypatch.undo()
    train([f"+resume={run / 'checkpoints' / 'rolling_step_000006.pt'}"], run)
    assert means(run)[8] == pytest.approx(fmean([exact[7], exact[8]]), rel=1e-12)


def _messages(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)
