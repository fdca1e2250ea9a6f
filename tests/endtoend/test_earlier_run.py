"""A run that an earlier commit trained lists, verifies, logs and resumes as it did then."""

import json
import tarfile
from pathlib import Path

import pytest
from commands import events, opened, run, succeed

from gpt2ckpt.checkpoint import format
from gpt2ckpt.checkpoint.reading import load
from gpt2ckpt.checkpoint.state import CheckpointState

# Commit da6bdc4: 8 steps, then 4 steps of a resume; with the token files that it was trained on.
ARCHIVE = Path(__file__).parent / "earlier_run.tar.gz"
ROLES = {
    **{"latest.pt": 12, "latest_backup.pt": 8, "rolling_last_backup.pt": 12},
    **{"rolling_step_000008.pt": 8, "rolling_step_000012.pt": 12},
    **{"best_model.pt": 12, "best_model_backup.pt": 12, "best_model_previous.pt": 8},
}
# Training losses of the steps after it, as that commit trained them; float32 on a CPU.
LOSSES = {13: 3.8234357834, 14: 3.8203258514, 15: 3.8221125603, 16: 3.8164784908}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """The directory that the run was started in."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_an_earlier_run_is_listed_verified_and_logged(directory: Path) -> None:
    listed = json.loads(succeed(run("checkpoints", ["list", "run", "--json"], directory)).out)
    assert {Path(entry["path"]).name: entry["step"] for entry in listed} == ROLES
    assert {entry["val_loss"] for entry in listed} == {3.8289910157521567, 3.8384721279144287}
    verified = json.loads(succeed(run("checkpoints", ["verify", "run", "--json"], directory)).out)
    assert {Path(entry["path"]).name: entry["valid"] for entry in verified} == dict.fromkeys(
        ROLES, True
    )
    logged = succeed(run("checkpoints", ["log", "run"], directory)).out
    assert "run (8052387e): step 12, best val 3.8290" in logged
    assert "2026-11-29 01:29:27 resumed from step 8" in logged


def test_an_earlier_run_resumes_and_trains_the_same_losses(directory: Path) -> None:
    words = ["+resume=latest", "hydra.run.dir=run", "trainer.max_steps=16"]
    done = succeed(run("train", words, directory))
    assert "resuming from run/checkpoints/latest.pt, step 12" in done.out.replace(
        f"{directory}/", ""
    )
    losses = dict(events(directory / "run"))
    assert list(losses) == list(range(1, 17))
    assert {step: losses[step] for step in LOSSES} == pytest.approx(LOSSES, rel=1e-4)
    before = opened(directory / "run" / "checkpoints" / "rolling_step_000012.pt")
    after = opened(directory / "run" / "checkpoints" / "latest.pt")
    assert after["step"] == 16
    for key in ("run", "data", "environment", "versions", "schedule", "rng"):
        assert list(after[key]) == list(before[key])


def test_the_typed_state_stores_what_an_earlier_commit_stored(directory: Path) -> None:
    for path in (directory / "run" / "checkpoints").glob("*.pt"):
        stored = load(path)
        state = CheckpointState.from_dict(stored)
        state.require_resumable(path)
        again = format.encode(state.to_dict()).buffers
        own = format.encode(stored).buffers
        assert bytes(again[1]) == bytes(own[1]), "meta.json"
        assert bytes(again[3]) == bytes(own[3]), "tensors.json"
