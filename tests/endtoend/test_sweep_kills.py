"""A sweep with a killed process group is completed by its command; finished jobs are unchanged.

For more jobs and kills: SWEEP_JOBS=6 SWEEP_KILLS=3.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import environment, events, latest, run, steps_done, succeed, tree

JOBS, KILLS = int(os.environ.get("SWEEP_JOBS", "3")), int(os.environ.get("SWEEP_KILLS", "1"))
STEPS, PATIENCE = 40, 300
SEED = random.randrange(1 << 30)  # printed by the assertion that fails
LAUNCHERS = {"basic": [], "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]}


def done_in(sweep: Path) -> int:
    """Return the number of steps that all jobs have logged."""
    return sum(steps_done(job) for job in sweep.iterdir()) if sweep.is_dir() else 0


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_killed_sweep_is_completed_by_its_command(
    token_data: Any, tmp_path: Path, launcher: str
) -> None:
    dice, sweep = random.Random(SEED), tmp_path / "sweep"
    overrides = [
        *("-m", *token_data.overrides, f"seed=range({JOBS})", f"trainer.max_steps={STEPS}"),
        *("checkpoint.save_every=5", "trainer.eval_every=20", "trainer.eval_steps=1"),
        *(*LAUNCHERS[launcher], "hydra.sweep.dir=sweep", "+resume=auto"),
    ]
    finished: dict[str, Any] = {}
    for _ in range(KILLS):
        command = [sys.executable, "-m", "gpt2ckpt.train", *overrides]
        with (tmp_path / "out").open("w") as out:
            process = subprocess.Popen(
                command, cwd=tmp_path, env=environment(), stdout=out, start_new_session=True
            )
        target = done_in(sweep) + dice.randrange(1, STEPS * JOBS // (KILLS + 1))
        end = time.monotonic() + PATIENCE
        while done_in(sweep) < target and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for job in sweep.iterdir():
            if steps_done(job) == STEPS:
                finished.setdefault(job.name, (latest_step(job), tree(job)))
    output = succeed(run("train", overrides, tmp_path)).out
    jobs = [path for path in sweep.iterdir() if (path / "checkpoints").is_dir()]
    seeds = sorted(latest(job)["config"]["seed"] for job in jobs)
    assert seeds == list(range(JOBS)), f"{SEED}: {output}"
    for job in jobs:
        assert latest(job)["step"] == STEPS, SEED
        assert [step for step, _ in events(job)] == list(range(1, STEPS + 1)), SEED
        step, before = finished.get(job.name, (0, {}))
        if step == STEPS and latest_was_evaluated(job):
            assert tree(job) == before, f"{SEED}: {job}"


def latest_step(job: Path) -> int:
    return int(latest(job)["step"]) if (job / "checkpoints" / "latest.pt").exists() else 0


def latest_was_evaluated(job: Path) -> bool:
    return bool(latest(job)["data"]["evaluated_step"] == STEPS)
