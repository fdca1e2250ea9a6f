"""On a signal to a sweep, running jobs save and stop, and no other job starts."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import finish, opened, start, steps_done, wait_until

PARALLEL = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.mark.parametrize(
    ("number", "launcher", "training"),
    [(signal.SIGINT, [], 1), (signal.SIGTERM, PARALLEL, 2)],
    ids=["basic", "joblib"],
)
def test_signal_to_a_sweep_saves_running_jobs_and_starts_no_other(
    token_data: Any, tmp_path: Path, number: signal.Signals, launcher: list[str], training: int
) -> None:
    """The signal goes only to the main process, which stops its workers."""
    overrides = ["-m", *token_data.overrides, "seed=1,2,3,4", "trainer.max_steps=3000"]
    overrides += ["checkpoint.save_every=3000", "hydra.sweep.dir=sweep", *launcher]
    sweep = tmp_path / "sweep"
    jobs = [sweep / str(n) for n in range(training)]
    process = start("train", overrides, tmp_path)
    wait_until(process, lambda: all(steps_done(job) >= 2 for job in jobs))
    process.send_signal(number)
    done = finish(process)
    assert done.code == 128 + number, done.out + done.err
    assert {path for path in sweep.iterdir() if (path / "checkpoints").is_dir()} == set(jobs)
    for job in jobs:
        [emergency] = (job / "checkpoints").glob("emergency_step_*.pt")
        assert opened(emergency)["step"] == steps_done(job)
    begun = [json.loads(line) for line in (sweep / "jobs.jsonl").read_text().splitlines()]
    assert sum(entry["status"] == "interrupted" for entry in begun) == training
    table = (sweep / "table.txt").read_text()
    assert table.count("interrupted") == training and table.count("not started") == 4 - training
    assert "+resume=auto" in done.out.splitlines()[-1]
