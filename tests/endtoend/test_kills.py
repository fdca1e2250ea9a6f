"""A run that is killed at random moments ends bitwise equal to an undisturbed run."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt2ckpt.loggers.wandb_offline import _steps
from tests import forkserver
from tests.forkserver import Forked

STEPS = 240
START_SECONDS = 4  # about as long as the start of a new interpreter takes
KILLS = int(os.environ.get("GPT2CKPT_KILLS", "3"))  # each costs a start
SEED = random.randrange(1 << 30)  # printed by the assertion that fails
SETTINGS = [
    "data=tokens",
    "data.train=train.bin",
    "data.val=val.bin",
    "model.vocab_size=64",
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=32",
    "model.block_size=16",
    "model.dropout=0.1",
    "trainer.batch_size=3",
    "trainer.grad_accum=2",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every=1",
    "trainer.eval_every=25",
    "trainer.eval_steps=2",
    "trainer.sample_every=0",
    "trainer.threads=1",
    "checkpoint.save_every=9",
    "checkpoint.keep_rolling=3",
    "logger=none",
]


def environment() -> dict[str, str]:
    """Return that of the other commands, with W&B offline."""
    kept = {key: value for key, value in commands.environment().items() if "WANDB_" not in key}
    return {**kept, "WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"}


def start(folder: Path, *more: str) -> Forked:
    """Start a training run in its own process group, to be killed with its children."""
    arguments = [*SETTINGS, *more]
    return forkserver.start("gpt2ckpt.train", arguments, folder, environment(), new_session=True)


def finish(process: Forked) -> str:
    output = "".join(process.communicate(timeout=900))
    assert process.returncode == 0, output
    return output


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    try:
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except ValueError:
        return 0  # read in the middle of a line


def kill_in_the_middle(process: Forked, run: Path, dice: random.Random) -> None:
    """Send SIGKILL a random time after some more steps."""
    target = steps_done(run) + dice.randrange(1, max(2, 2 * STEPS // (KILLS + 2)))
    while steps_done(run) < target and process.poll() is None:
        time.sleep(0.002)
    time.sleep(dice.random() * 0.03)
    with contextlib.suppress(ProcessLookupError):  # it may have come to its end meanwhile
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=900)


def kill_during_start(folder: Path, overrides: Sequence[str], dice: random.Random) -> None:
    """Send SIGKILL to a new interpreter that imports torch, validates the run or opens files."""
    command = [sys.executable, "-m", "gpt2ckpt.train", *SETTINGS, *overrides]
    options = {"env": environment(), "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=folder, start_new_session=True, **options)
    time.sleep(dice.random() * START_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=900)


def train_losses(run: Path) -> list[tuple[int, float]]:
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(event["step"], event["train_loss"]) for event in events if "train_loss" in event]


def state_of(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints/latest.pt", weights_only=True)


def assert_same(one: Any, other: Any, path: str = "") -> None:
    """Assert equal structure and bitwise equal tensors."""
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}[{number}]")
    else:
        assert one == other, path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write token files of random walks over 64 tokens; an epoch is 62 2/3 steps."""
    folder = tmp_path_factory.mktemp("kills")
    walk = np.cumsum(np.random.default_rng(0).integers(-2, 3, 8000)) % 64
    walk[: 376 * 16 + 1].astype("<u2").tofile(folder / "train.bin")
    walk[7000:].astype("<u2").tofile(folder / "val.bin")
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Path:
    finish(start(folder, "hydra.run.dir=undisturbed"))
    return folder / "undisturbed"


@pytest.fixture(scope="module")
def killed(folder: Path) -> tuple[Path, str]:
    """Return a run with all loggers that was killed repeatedly, and its last output."""
    run, dice = folder / "killed", random.Random(SEED)
    overrides = ("hydra.run.dir=killed", "+resume=auto", "logger=all")
    for _ in range(KILLS):
        kill_in_the_middle(start(folder, *overrides), run, dice)
    kill_during_start(folder, overrides, dice)
    output = finish(start(folder, *overrides))
    lines = (run / "train.log").read_text().splitlines()
    failures = [line for line in lines if "disabled" in line or "dropped" in line]
    assert not failures, f"seed {SEED}: a logger failed, and lacks steps"
    return run, output


def test_run_killed_repeatedly_equals_an_undisturbed_run_bitwise(
    killed: tuple[Path, str], undisturbed: Path
) -> None:
    run, output = killed
    expected, found = state_of(undisturbed), state_of(run)
    for key in ("model", "optimizer", "rng", "data", "step", "epoch", "tokens_seen", "scaler"):
        assert_same(found[key], expected[key], f"seed {SEED}: {key}")
    assert found["val_loss"] == expected["val_loss"]
    assert found["best_val_loss"] == expected["best_val_loss"]
    assert train_losses(run) == train_losses(undisturbed), f"seed {SEED}"
    assert [step for step, _ in train_losses(run)] == list(range(1, STEPS + 1))
    assert "differs" not in (run / "train.log").read_text() + output
    assert not list((run / "checkpoints").glob("abandoned_*"))


def test_killed_run_has_each_step_once_in_tensorboard(killed: tuple[Path, str]) -> None:
    run, _ = killed
    events = EventAccumulator(str(run / "tensorboard"), {"scalars": 0})
    events.Reload()
    curve = [(event.step, event.value) for event in events.Scalars("train/loss")]
    expected = [(step, float(np.float32(loss))) for step, loss in train_losses(run)]
    assert curve == expected, f"seed {SEED}"
    assert len(list((run / "tensorboard").iterdir())) > 1
    evaluations = [event.step for event in events.Scalars("val/loss")]
    assert evaluations == [*range(25, STEPS, 25), STEPS], f"seed {SEED}"


def test_killed_run_is_one_run_in_wandb(killed: tuple[Path, str]) -> None:
    run, _ = killed
    files = list((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) > 1
    assert {path.name for path in files} == {f"run-{state_of(run)['run']['id']}.wandb"}
    sent = sorted(step for path in files for step in _steps(path))
    assert sent == list(range(1, STEPS + 1)), f"seed {SEED}"


def test_ctrl_c_saves_and_the_printed_command_resumes_bitwise(
    folder: Path, undisturbed: Path
) -> None:
    run = folder / "stopped"
    process = start(folder, "hydra.run.dir=stopped")
    while steps_done(run) < 20 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    output = "".join(process.communicate(timeout=900))
    assert process.returncode == 130, output
    [emergency] = (run / "checkpoints").glob("emergency_step_*.pt")
    assert torch.load(emergency, weights_only=True)["reason"] == "SIGINT"
    command = next(line for line in output.splitlines() if line.startswith("resume ")).split()
    assert command[2:4] == ["-m", "gpt2ckpt.train"]  # after the interpreter, however it is named
    finish(forkserver.start(command[3], command[4:], folder, environment()))
    for key in ("model", "optimizer", "rng", "data"):
        assert_same(state_of(run)[key], state_of(undisturbed)[key], key)
    assert train_losses(run) == train_losses(undisturbed)


def test_resume_from_every_kind_of_checkpoint_is_exact(folder: Path, undisturbed: Path) -> None:
    """Each resume is a fork, so that the undisturbed run is unchanged."""
    for name in ("best_model_previous.pt", "epoch_00000.pt", "rolling_step_000225.pt"):
        source = undisturbed / "checkpoints" / name
        run = f"from_{name}"
        finish(start(folder, f"+resume={source}", "+fork=true", f"hydra.run.dir={run}"))
        for key in ("model", "optimizer", "rng", "data"):
            assert_same(state_of(folder / run)[key], state_of(undisturbed)[key], f"{name}: {key}")
