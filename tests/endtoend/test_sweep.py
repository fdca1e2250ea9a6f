"""A multirun trains a full run for every job."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Done, latest, run, steps_done, succeed


@pytest.fixture(scope="module")
def swept(token_data: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    cwd = tmp_path_factory.mktemp("sweep")
    words = ["-m", *token_data.overrides, "trainer.max_steps=4", "optimizer.lr=1e-3,2e-3"]
    return cwd, run("train", words, cwd)


def test_every_job_is_a_full_run_directory(swept: tuple[Path, Done]) -> None:
    cwd, done = swept
    succeed(done)
    [sweep] = (cwd / "outputs").iterdir()
    assert sweep.name.startswith("gpt2_sweep_")
    assert {path.name for path in sweep.iterdir()} == {"0", "1", "multirun.yaml"}
    for job, lr in (("0", 1e-3), ("1", 2e-3)):
        folder = sweep / job
        expected = {".hydra", "checkpoints", "metrics.jsonl", "train.log", ".history.json"}
        assert {path.name for path in folder.iterdir()} == expected
        assert (latest(folder)["step"], steps_done(folder)) == (4, 4)
        assert latest(folder)["config"]["optimizer"]["lr"] == lr
        record = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
        assert record["optimizer"]["lr"] == lr


def test_the_jobs_are_runs_of_their_own(swept: tuple[Path, Done]) -> None:
    [sweep] = (swept[0] / "outputs").iterdir()
    assert latest(sweep / "0")["run"]["id"] != latest(sweep / "1")["run"]["id"]


def test_a_sweep_that_is_given_again_goes_on_where_it_was(
    token_data: Any, swept: tuple[Path, Done]
) -> None:
    """Finished jobs are not trained again, whatever is missing is."""
    cwd = swept[0]
    [sweep] = (cwd / "outputs").iterdir()
    for path in (sweep / "1" / "checkpoints").iterdir():
        path.unlink()
    before = (sweep / "0" / "metrics.jsonl").stat().st_mtime_ns
    words = ["-m", *token_data.overrides, "trainer.max_steps=4", "optimizer.lr=1e-3,2e-3"]
    done = run("train", [*words, f"hydra.sweep.dir={sweep}", "+resume=auto"], cwd)
    assert "is finished: step 4 of 4" in succeed(done).out
    assert (sweep / "0" / "metrics.jsonl").stat().st_mtime_ns == before
    assert latest(sweep / "1")["step"] == 4
    assert {path.name for path in sweep.iterdir()} == {"0", "1", "multirun.yaml"}
