"""A finished run that the tests share: they copy it or only read it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import run, succeed


@dataclass(frozen=True)
class Reference:
    """Train 120 steps in `directory` and return the arguments without hydra.run.dir."""

    directory: Path
    overrides: list[str]
    output: str


@pytest.fixture(scope="session")
def reference(token_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("reference")
    overrides = [
        *(*token_data.overrides, "model.dropout=0.1", "trainer.grad_accum=2"),
        *("trainer.max_steps=120", "trainer.eval_every=25", "trainer.eval_steps=3"),
        *("checkpoint.save_every=20", "optimizer.lr=1e-2", "schedule=constant", "name=reference"),
    ]
    done = succeed(run("train", [*overrides, "hydra.run.dir=run"], folder))
    return Reference(folder / "run", overrides, done.out)
