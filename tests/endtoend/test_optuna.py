"""A search with Optuna trains its trials, stores its study, and resumes it."""

from pathlib import Path
from typing import Any

import pytest
from commands import latest, run, succeed

optuna = pytest.importorskip("optuna", reason="the extra sweeps installs it")


def test_resumed_search_trains_only_the_missing_trial(token_data: Any, tmp_path: Path) -> None:
    search = ("hydra/sweeper=optuna", "optimizer.lr=tag(log, interval(1e-4, 1e-2))")
    length = ("trainer.max_steps=4", "trainer.eval_every=4", "trainer.eval_steps=1")
    arguments = ["-m", *token_data.overrides, *length, *search, "hydra.sweep.dir=sweep"]
    sweep = tmp_path / "sweep"
    succeed(run("train", [*arguments, "hydra.sweeper.n_trials=2"], tmp_path))
    saved = {job: (sweep / job / "checkpoints/latest.pt").read_bytes() for job in ("0", "1")}
    done = succeed(run("train", [*arguments, "hydra.sweeper.n_trials=3", "+resume=auto"], tmp_path))
    study = optuna.load_study(study_name="gpt2", storage=f"sqlite:///{sweep}/study.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    for number, trial in enumerate(study.trials):
        checkpoint = latest(sweep / str(number))
        assert checkpoint["config"]["optimizer"]["lr"] == trial.params["optimizer.lr"]
        assert checkpoint["best_val_loss"] == trial.value
    for job, content in saved.items():
        assert (sweep / job / "checkpoints/latest.pt").read_bytes() == content
    assert all(line in done.out for line in (sweep / "table.txt").read_text().splitlines())
