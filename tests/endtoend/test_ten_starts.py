"""Ten commands at once in one folder: a run directory each, and none touches another's."""

from pathlib import Path
from typing import Any

from commands import events, finish, latest, start, succeed

STARTS = 10


def test_ten_starts_at_once_get_ten_directories(token_data: Any, tmp_path: Path) -> None:
    words = [*token_data.overrides, "trainer.max_steps=2"]
    processes = [start("train", [*words, f"seed={seed}"], tmp_path) for seed in range(STARTS)]
    said = [succeed(finish(process)).out for process in processes]
    runs = sorted((tmp_path / "outputs").iterdir())
    assert len(runs) == STARTS
    assert {latest(run)["config"]["seed"] for run in runs} == set(range(STARTS))
    for run in runs:
        assert [step for step, _ in events(run)] == [1, 2]
        assert sum(f"outputs/{run.name}\n" in out for out in said) == 1
