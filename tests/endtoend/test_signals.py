"""Signals to a run in a directory with special characters in its name.

Ctrl+C and exactness are tested in test_kills.py.
"""

import signal
import subprocess
from pathlib import Path
from typing import Any

from commands import (
    PATIENCE,
    environment,
    events,
    finish,
    latest,
    opened,
    same_bits,
    start,
    steps_done,
    wait_until,
)

AWKWARD = 'lr=1e-2, it\'s "mine" $HOME'


def test_sigusr1_saves_sigterm_stops_and_the_printed_command_resumes(
    reference: Any, tmp_path: Path
) -> None:
    run = tmp_path / AWKWARD
    quoted = "'" + AWKWARD.replace("'", "\\'") + "'"
    process = start("train", [*reference.overrides, f"hydra.run.dir={quoted}"], tmp_path)
    wait_until(process, lambda: steps_done(run) >= 5)
    process.send_signal(signal.SIGUSR1)
    saves = run / "checkpoints"
    wait_until(process, lambda: any(saves.glob("emergency_step_*.pt")))
    [asked] = saves.glob("emergency_step_*.pt")
    here = steps_done(run)
    wait_until(process, lambda: steps_done(run) > here + 2)  # it continues
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.code == 143, done.out + done.err
    assert done.err == ""
    assert opened(asked)["reason"] == "SIGUSR1"
    [stopped] = set(saves.glob("emergency_step_*.pt")) - {asked}
    assert opened(stopped)["reason"] == "SIGTERM"
    assert opened(stopped)["step"] == steps_done(run) > opened(asked)["step"]
    assert same_bits(opened(stopped)["model"], latest(run)["model"])

    [command] = [line for line in done.out.splitlines() if "+resume=latest" in line]
    command = command[command.index("python -m") :]
    pipes = {"capture_output": True, "text": True, "timeout": PATIENCE}
    resumed = subprocess.run(command, shell=True, cwd=tmp_path, env=environment(), **pipes)
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming from {AWKWARD}/checkpoints/latest.pt" in resumed.stdout
    for key in ("model", "optimizer", "rng", "data"):
        assert same_bits(latest(run)[key], latest(reference.directory)[key]), key
    for key in ("train_loss", "val_loss"):
        assert events(run, key) == events(reference.directory, key)
