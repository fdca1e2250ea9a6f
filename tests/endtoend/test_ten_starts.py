"""Simultaneous commands in one folder get separate run directories."""

from pathlib import Path
from typing import Any

from commands import events, finish, latest, start, succeed, wait_until

STARTS = 10


def test_ten_simultaneous_starts_get_ten_directories(token_data: Any, tmp_path: Path) -> None:
    overrides = [*token_data.overrides, "trainer.max_steps=2"]
    processes = [start("train", [*overrides, f"seed={seed}"], tmp_path) for seed in range(STARTS)]
    printed = [succeed(finish(process)).out for process in processes]
    runs = sorted((tmp_path / "outputs").iterdir())
    assert len(runs) == STARTS
    assert {latest(run)["config"]["seed"] for run in runs} == set(range(STARTS))
    for run in runs:
        assert [step for step, _ in events(run)] == [1, 2]
        assert sum(f"outputs/{run.name}\n" in out for out in printed) == 1


def test_simultaneous_sweeps_get_separate_folders(token_data: Any, tmp_path: Path) -> None:
    overrides = ["-m", *token_data.overrides, "trainer.max_steps=2", "seed=1,2"]
    overrides.append("hydra.sweep.dir=outputs/mine")
    processes = [start("train", overrides, tmp_path) for _ in range(3)]
    printed = [succeed(finish(process)).out for process in processes]
    sweeps = sorted((tmp_path / "outputs").iterdir())
    assert [len(list(sweep.glob("[0-9]*"))) for sweep in sweeps] == [2, 2, 2]
    assert sweeps[0].name == "mine"
    assert sum("CHECKPOINT DIRECTORY PROTECTION" in out for out in printed) == 2


def test_new_sweep_avoids_the_folder_of_a_running_sweep(token_data: Any, tmp_path: Path) -> None:
    overrides = ["-m", *token_data.overrides, "trainer.max_steps=2", "seed=1,2"]
    overrides.append("hydra.sweep.dir=outputs/mine")
    first = start("train", [*overrides, "+resume=auto"], tmp_path)
    wait_until(first, (tmp_path / "outputs" / "mine" / "jobs.jsonl").exists)
    printed = succeed(finish(start("train", overrides, tmp_path))).out
    succeed(finish(first))
    assert "CHECKPOINT DIRECTORY PROTECTION" in printed
    assert len(list((tmp_path / "outputs" / "mine").glob("[0-9]*"))) == 2
