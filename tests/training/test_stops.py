"""Signals to a run in this process: what is saved and logged, and how the run ends."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_helpers import events, train

from gpt2ckpt.checkpoint.manager import CheckpointManager
from gpt2ckpt.checkpoint.reading import load
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.training import sampling


def send_in_step(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """Send this process a signal while it computes the loss of `step`."""
    real, calls = GPT2.loss, []

    def loss(self: GPT2, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return real(self, *arguments)

    monkeypatch.setattr(GPT2, "loss", loss)


def emergencies(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("emergency_*.pt"))


def test_sigusr1_saves_and_training_continues(
    token_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = tmp_path / "run", []

    def launchers(number: int, frame: object) -> None:
        calls.append((number, len(emergencies(run)), len(events(run))))

    before = signal.signal(signal.SIGUSR1, launchers)
    try:
        send_in_step(monkeypatch, 3, signal.SIGUSR1)
        outcome = train([*token_data.overrides, "trainer.max_steps=6"], run)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert outcome.stopped is None
    [asked] = emergencies(run)
    assert (load(asked)["step"], load(asked)["reason"]) == (3, "SIGUSR1")
    assert load(run / "checkpoints" / "latest.pt")["step"] == 6
    assert calls == [(signal.SIGUSR1, 1, 3)], "a launcher is notified once, after the save"


def test_signal_during_sample_drops_the_sample(
    token_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = [*token_data.overrides, "model.n_embd=4", "model.vocab_size=50304"]
    words += ["trainer.max_steps=6", "trainer.sample_every=2", "trainer.sample_tokens=9"]
    words += ["trainer.sample_prompt=The"]
    real, drawn = sampling.generate, []

    def interrupted(*arguments: Any, **options: Any) -> list[list[int]]:
        os.kill(os.getpid(), signal.SIGTERM)
        drawn.extend(real(*arguments, **options))
        return drawn

    monkeypatch.setattr(sampling, "generate", interrupted)
    with caplog.at_level(logging.INFO):
        assert train(words, tmp_path / "run").stopped is signal.SIGTERM
    assert drawn == [[]], "not one token"
    assert "sample:" not in caplog.text
    [emergency] = emergencies(tmp_path / "run")
    assert load(emergency)["step"] == 2


@pytest.mark.parametrize("grace", ["3000", "null"])
def test_emergency_save_that_would_miss_deadline_is_skipped_and_newest_named(
    token_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    grace: str,
) -> None:
    """The estimated time of a save is set to eleven days."""
    run = tmp_path / "run"
    words = [*token_data.overrides, "trainer.max_steps=12", "checkpoint.save_every=3"]
    words += ["checkpoint.async_save=false"]
    monkeypatch.setattr(CheckpointManager, "seconds_to_save", lambda self: 1e6)
    send_in_step(monkeypatch, 5, signal.SIGTERM)
    assert train([*words, f"checkpoint.grace_seconds={grace}"], run).stopped is signal.SIGTERM
    if grace == "null":
        assert [load(path)["step"] for path in emergencies(run)] == [5]
        return
    assert emergencies(run) == []
    assert "longer than the time left. The newest checkpoint is" in caplog.text
    assert "rolling_step_000003.pt" in caplog.text


COMPILING = """
import os, signal, sys
from pathlib import Path
import torch
from training_helpers import train
from gpt2ckpt.model.gpt2 import GPT2
def compile(loss):  # what takes minutes is the first call
    def compiled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return loss(*arguments)
    return compiled
torch.compile = compile
train(sys.argv[2:], Path(sys.argv[1]))
"""


def test_signal_during_compilation_ends_process_immediately(
    token_data: Any, tmp_path: Path
) -> None:
    words = [*token_data.overrides, "trainer.compile=true", "trainer.max_steps=9"]
    words += [
        "checkpoint.save_every=3"
    ]  # otherwise a warning reports an interval that is never reached
    done = subprocess.run(
        [sys.executable, "-c", COMPILING, str(tmp_path / "run"), *words],
        **{"env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, "timeout": 120},
        **{"capture_output": True, "text": True},
    )
    assert (done.returncode, done.stderr) == (143, "interrupted: there was nothing to save\n")
    assert emergencies(tmp_path / "run") == []
