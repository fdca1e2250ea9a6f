"""The best model after resumes and forks: each run has its own; only comparable losses count."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_helpers import events, train

from gpt2ckpt.checkpoint.names import BEST, BEST_PREVIOUS
from gpt2ckpt.checkpoint.reading import load

LENGTH = 24
EVERY = ["trainer.eval_every=4", "trainer.eval_steps=2", "checkpoint.save_every=4"]


@pytest.fixture
def run(token_data: Any, tmp_path: Path) -> Path:
    """Train a run whose loss falls, so that the last evaluation is the best."""
    words = [*token_data.overrides, *EVERY, "schedule=constant", "optimizer.lr=1e-2"]
    train([*words, f"trainer.max_steps={LENGTH}"], tmp_path / "run")
    assert best(tmp_path / "run") == (LENGTH, lowest(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def harder(tmp_path: Path) -> Path:
    """Write random validation tokens, whose loss is higher than all earlier losses."""
    path = tmp_path / "harder.bin"
    np.random.default_rng(0).integers(0, 64, 700).astype("<u2").tofile(path)
    return path


def best(run: Path) -> tuple[int, float]:
    state = load(run / "checkpoints" / BEST)
    assert (state["best_step"], state["best_val_loss"]) == (state["step"], state["val_loss"])
    return state["step"], state["val_loss"]


def lowest(run: Path, after: int = 0) -> float:
    return min(e["val_loss"] for e in events(run, "val_loss") if e["step"] > after)


def test_fork_has_its_own_best_model(run: Path, harder: Path, tmp_path: Path) -> None:
    fork = tmp_path / "fork"
    more = [f"data.val={harder}", f"trainer.max_steps={LENGTH + 12}", "checkpoint.save_every=2"]
    train([f"+resume={run}", "+fork=true", *more], fork)
    assert best(fork)[1] == lowest(fork) > best(run)[1]
    assert best(fork)[0] > LENGTH
    before = load(fork / "checkpoints" / f"rolling_step_{LENGTH + 2:06d}.pt")
    assert (before["best_val_loss"], before["best_step"]) == (None, None)  # not yet evaluated


@pytest.mark.parametrize("what", ["data", "blocks"])
def test_resume_on_other_validation_blocks_resets_best(
    run: Path, harder: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    old = best(run)
    more = {"data": f"data.val={harder}", "blocks": "trainer.eval_steps=1"}[what]
    caplog.set_level(logging.WARNING)
    lr = "optimizer.lr=3"  # so that no later loss is lower, on whatever blocks
    train(["+resume=latest", more, lr, f"trainer.max_steps={LENGTH + 12}"], run)
    [reported] = [
        message
        for message in caplog.messages
        if "evaluated on different validation blocks" in message
    ]
    assert reported.startswith(f"{BEST} (step {LENGTH}, val loss {old[1]:.4f})")
    step, loss = best(run)
    assert step > LENGTH and loss == lowest(run, after=LENGTH) > old[1]
    # After another resume on the same blocks, this best loss counts.
    caplog.clear()
    train(["+resume=latest", "optimizer.lr=9", f"trainer.max_steps={LENGTH + 16}"], run)
    assert best(run) == (step, loss)
    assert not [message for message in caplog.messages if "other blocks" in message]


def test_other_training_data_keeps_best(run: Path, token_data: Any, tmp_path: Path) -> None:
    tokens = np.fromfile(token_data.train, dtype="<u2")
    tokens[::2].tofile(tmp_path / "half.bin")
    old = best(run)
    more = [f"data.train={tmp_path / 'half.bin'}", "optimizer.lr=3"]
    train(["+resume=latest", *more, f"trainer.max_steps={LENGTH + 8}"], run)
    assert best(run) == old


def test_deleted_best_model_no_longer_counts(run: Path) -> None:
    kept = load(run / "checkpoints" / "latest.pt")["step"]
    for path in (run / "checkpoints").glob("*.pt"):
        if path.name != "latest.pt":
            path.unlink()
    train(["+resume=latest", "optimizer.lr=3", f"trainer.max_steps={LENGTH + 8}"], run)
    assert kept == LENGTH
    # latest.pt is now the only name of the file with the best state.
    assert best(run)[0] == LENGTH
    for path in (run / "checkpoints").glob("best*.pt"):
        path.unlink()
    (run / "checkpoints" / f"rolling_step_{LENGTH:06d}.pt").unlink(missing_ok=True)
    (run / "checkpoints" / "latest_backup.pt").unlink(missing_ok=True)
    train(["+resume=latest", "optimizer.lr=9", f"trainer.max_steps={LENGTH + 16}"], run)
    step, loss = best(run)
    assert step > LENGTH and loss == lowest(run, after=LENGTH + 8)


def test_fork_without_save_best_remembers_only_its_losses(run: Path, tmp_path: Path) -> None:
    fork, more = tmp_path / "fork", ["checkpoint.save_best=false", "optimizer.lr=9"]
    outcome = train(
        [f"+resume={run}", "+fork=true", *more, f"trainer.max_steps={LENGTH + 8}"], fork
    )
    assert outcome.best_val_loss == lowest(fork) > lowest(run)


def test_without_save_best_lowest_loss_is_remembered(
    token_data: Any, tmp_path: Path, harder: Path
) -> None:
    words = [*token_data.overrides, *EVERY, "schedule=constant", "optimizer.lr=1e-2"]
    run, none = tmp_path / "run", "checkpoint.save_best=false"
    outcome = train([*words, none, "trainer.max_steps=12"], run)
    assert outcome.best_val_loss == lowest(run)
    outcome = train(["+resume=latest", "optimizer.lr=9", "trainer.max_steps=20"], run)
    assert outcome.best_val_loss == lowest(run) < lowest(run, after=12)
    outcome = train(["+resume=latest", f"data.val={harder}", "trainer.max_steps=24"], run)
    assert outcome.best_val_loss == lowest(run, after=20)
    assert not (run / "checkpoints" / BEST).exists()
    assert not (run / "checkpoints" / BEST_PREVIOUS).exists()
