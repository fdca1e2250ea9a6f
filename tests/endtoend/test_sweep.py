"""A multirun trains a complete run for every job, and the same command resumes it."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Done, environment, latest, run, steps_done, tree

from gpt2ckpt.runs.lock import RunLock
from gpt2ckpt.train import main

RUN_FILES = {
    *(".hydra", "checkpoints", "metrics.jsonl", "events.jsonl", "train.log", ".history.json"),
}
SWEEP_FILES = {"multirun.yaml", "jobs.jsonl", "table.txt"}


def overrides(token_data: Any, *more: str) -> list[str]:
    length = ("trainer.max_steps=4", "trainer.eval_every=4", "trainer.eval_steps=1")
    return ["-m", *token_data.overrides, *length, *more]


@pytest.fixture(scope="module")
def swept(token_data: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """Return a sweep of three jobs, the first of which has no data."""
    cwd = tmp_path_factory.mktemp("sweep")
    for name in ("a.bin", "b.bin"):
        shutil.copy(token_data.train, cwd / name)
    return cwd, run("train", overrides(token_data, "data.train=late.bin,a.bin,b.bin"), cwd)


def test_every_sweep_job_is_a_complete_run_directory(swept: tuple[Path, Done]) -> None:
    [sweep] = (swept[0] / "outputs").iterdir()
    assert sweep.name.startswith("gpt2_sweep_")
    assert {path.name for path in sweep.iterdir()} == {"1", "2", *SWEEP_FILES}
    for job, data in (("1", "a.bin"), ("2", "b.bin")):
        folder = sweep / job
        assert {path.name for path in folder.iterdir()} == RUN_FILES
        assert (latest(folder)["step"], steps_done(folder)) == (4, 4)
        assert latest(folder)["config"]["data"]["train"] == data
        record = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
        assert record["data"]["train"] == data
        hydra = yaml.safe_load((folder / ".hydra" / "hydra.yaml").read_text())["hydra"]
        assert Path(hydra["runtime"]["output_dir"]) == folder
        assert f"data.train={data}" in yaml.safe_load(
            (folder / ".hydra/overrides.yaml").read_text()
        )
        assert "step 4/4" in (folder / "train.log").read_text()
    assert latest(sweep / "1")["run"]["id"] != latest(sweep / "2")["run"]["id"]


def test_failed_job_stops_no_other_job_and_the_table_shows_the_error(
    swept: tuple[Path, Done],
) -> None:
    done = swept[1]
    assert done.code == 1
    [sweep] = (swept[0] / "outputs").iterdir()
    table = (sweep / "table.txt").read_text().splitlines()
    assert "\n".join(table) in done.out
    losses = {job: latest(sweep / job)["best_val_loss"] for job in ("1", "2")}
    first, second = sorted(losses, key=losses.__getitem__)
    rows = [line.split() for line in table[1:4]]
    assert [row[0] for row in rows] == [first, second, "-"]
    assert rows[0][2:] == ["finished", f"{losses[first]:.4f}", "best"]
    assert rows[1][2:] == ["finished", f"{losses[second]:.4f}"]
    assert rows[2][2:] == ["failed", "-"]
    assert any("late.bin" in line and line.startswith("-: ") for line in table)
    assert f"best: {sweep.relative_to(swept[0]) / first}" in table
    assert max(len(line) for line in table if not line.startswith(("best: ", "to resume"))) <= 80
    assert "+resume=auto" in done.out.splitlines()[-1]


def test_printed_command_resumes_the_best_job(swept: tuple[Path, Done], tmp_path: Path) -> None:
    """The command is run by a shell in a copy of all files."""
    shutil.copytree(swept[0], tmp_path / "copy")
    [typed] = [line for line in swept[1].out.splitlines() if line.startswith("to resume it ")]
    [place] = [line for line in swept[1].out.splitlines() if line.startswith("best: ")]
    options: dict[str, Any] = {"cwd": tmp_path / "copy", "env": environment(), "text": True}
    shell = typed.removeprefix("to resume it for longer: ")
    done = subprocess.run(shell, shell=True, capture_output=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    assert latest(tmp_path / "copy" / place.removeprefix("best: "))["step"] == 8


def test_repeated_sweep_finds_its_jobs_by_their_settings(
    token_data: Any, swept: tuple[Path, Done]
) -> None:
    """The jobs are given in another order, in two processes, while another process trains one.

    Finished jobs are unchanged.
    """
    cwd = swept[0]
    [sweep] = (cwd / "outputs").iterdir()
    shutil.copy(token_data.train, cwd / "late.bin")
    before = tree(sweep)
    mixed = ("data.train=b.bin,a.bin,late.bin", f"hydra.sweep.dir={sweep}", "+resume=auto")
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    with RunLock(sweep / "1"):
        done = run("train", overrides(token_data, *mixed, *launcher), cwd)
    after = tree(sweep)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"1", "jobs.jsonl", "table.txt"}  # 1: the lock came and went
    assert {path.name for path in sweep.iterdir() if path.is_dir()} == {"1", "2", "3", ".hydra"}
    assert latest(sweep / "3")["config"]["data"]["train"] == "late.bin"
    assert steps_done(sweep / "3") == 4
    assert (sweep / ".hydra" / "resume_1" / "multirun.yaml").exists()
    rows = {line.split()[0]: line for line in (sweep / "table.txt").read_text().splitlines()}
    assert "finished before" in rows["2"]
    assert "another process has it" in rows["1"]
    assert done.code == 1
    assert f"{sweep / '1'} is being trained by process " in done.err


def test_dry_run_of_a_sweep_previews_each_job_and_writes_nothing(
    token_data: Any,
    swept: tuple[Path, Done],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cwd = swept[0]
    [sweep] = (cwd / "outputs").iterdir()
    monkeypatch.chdir(cwd)
    again = ["data.train=a.bin,c.bin", f"hydra.sweep.dir={sweep}"]
    shutil.copy(token_data.train, "c.bin")
    before = tree(cwd)
    for more in (["dry_run=true"], ["+dry_run=true", "trainer.max_steps=6"]):
        monkeypatch.setattr("sys.argv", ["t", *overrides(token_data, *again, "resume=auto", *more)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
    first, second = capsys.readouterr().out.split("dry run: ")[1:]
    assert "1    data.train=a.bin  finished" in first
    assert "data.train=c.bin  new" in first
    assert "1    data.train=a.bin  resume from step 4" in second
    assert "1: trainer.max_steps: 4 → 6" in second
    assert tree(cwd) == before
