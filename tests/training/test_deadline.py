"""Deadlines: saves and steps that fit, and the end of a process that takes too long."""

import os
import signal
import subprocess
import sys
import time
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from training_helpers import train

from gpt2ckpt.checkpoint.reading import load
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.signals.deadline import Deadline, save_fits, step_fits


def test_without_deadline_or_measurement_everything_fits() -> None:
    assert save_fits(1e9, None) and save_fits(None, 0.1) and step_fits(1.0, 1e9, None, None)


def test_save_fits_only_with_margin() -> None:
    assert save_fits(10.0, 12.0)
    assert not save_fits(10.0, 11.9)


@pytest.mark.parametrize(
    ("share", "step", "save", "left", "expected"),
    [(0.5, 10, 2.0, 7.5, True), (0.5, 10, 2.0, 7.3, False), (0.1, 10, None, 1.1, True)],
)
def test_rest_of_step_counts_towards_deadline(
    share: float, step: float, save: float | None, left: float, expected: bool
) -> None:
    assert step_fits(share, step, save, left) is expected


def test_deadline_counts_from_the_signal() -> None:
    assert Deadline(None, time.monotonic).left() is None
    assert Deadline(30.0, lambda: None).left() is None
    left = Deadline(30.0, lambda: time.monotonic() - 20).left()
    assert left is not None and 0 < left <= 10


STUCK = """
import ctypes, os, signal
from gpt2ckpt.signals.training import TrainingSignals, Watchdog
signals = TrainingSignals()
signals.newest_checkpoint_message = lambda: "The newest checkpoint is latest.pt"
with signals, Watchdog(signals, 0.2):
    os.kill(os.getpid(), signal.SIGUSR1)  # no stop
    os.kill(os.getpid(), signal.SIGTERM)
    while True:  # and never back in the interpreter
        ctypes.CDLL(None).sleep(600)
"""
IN_TIME = STUCK.replace("while True:", "if False:") + 'print("in time", signals.stop.name)'


def test_watchdog_ends_process_after_grace_period() -> None:
    command = [sys.executable, "-c", STUCK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 143
    assert (
        done.stderr
        == "SIGTERM: the grace period of 0.2 s is over. The newest checkpoint is latest.pt\n"
    )


def test_watchdog_leaves_process_that_ends_in_time() -> None:
    command = [sys.executable, "-c", IN_TIME]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "in time SIGTERM\n", "")


TRAINING = """
import ctypes, os, signal, sys
from pathlib import Path
from training_helpers import train
from gpt2ckpt.model.gpt2 import GPT2
real, calls = GPT2.loss, []
def loss(self, *arguments):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGTERM)
        ctypes.CDLL(None).sleep(600)
    return real(self, *arguments)
GPT2.loss = loss
train(sys.argv[2:], Path(sys.argv[1]))
"""


def test_stuck_training_is_ended_and_newest_checkpoint_named(
    token_data: Any, tmp_path: Path
) -> None:
    words = [*token_data.overrides, "checkpoint.save_every=3", "checkpoint.grace_seconds=0.2"]
    words += ["checkpoint.async_save=false"]
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(tmp_path / "run"), *words],
        **{"env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, "timeout": 120},
        **{"capture_output": True, "text": True},
    )
    assert done.returncode == 143, done.stderr
    assert "SIGTERM: the grace period of 0.2 s is over. The newest checkpoint is" in done.stderr
    assert "rolling_step_000003.pt" in done.stderr


def stop_in_the_fifth_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM in the first of the two micro-batches of step 5."""
    real, calls = GPT2.loss, []

    def loss(self: GPT2, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    monkeypatch.setattr(GPT2, "loss", loss)


@pytest.mark.parametrize(("seconds", "files"), [(0.0, 1), (1e6, 0)])
def test_step_that_would_miss_deadline_is_abandoned(
    token_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    files: int,
) -> None:
    """The state before the step is saved if a save of `seconds` fits before the deadline."""
    from gpt2ckpt.checkpoint.manager import CheckpointManager
    from gpt2ckpt.signals import deadline

    words = [*token_data.overrides, "trainer.max_steps=12", "trainer.grad_accum=2"]
    words += ["checkpoint.grace_seconds=3000", "checkpoint.save_every=3"]
    monkeypatch.setattr(CheckpointManager, "seconds_to_save", lambda self: seconds)
    left = chain([1e-9], repeat(3000.0))  # within the step, and after the step is abandoned
    monkeypatch.setattr(
        deadline.Deadline, "left", lambda self: next(left) if self.stop_requested_at() else None
    )
    stop_in_the_fifth_step(monkeypatch)
    train(words, tmp_path / "run")
    emergencies = list((tmp_path / "run" / "checkpoints").glob("emergency_*.pt"))
    assert len(emergencies) == files
    assert [load(path)["step"] for path in emergencies] == [4] * files
    assert load(tmp_path / "run" / "checkpoints" / "latest.pt")["step"] == (4 if files else 3)
