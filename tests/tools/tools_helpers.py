"""Runs with small real checkpoints in every role, and calls of the commands."""

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch

from gpt2ckpt.checkpoint import format
from gpt2ckpt.checkpoint.retention import Retention, SaveRequest
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.config.replay import freeze
from tests import forkserver

NOON = datetime(2025, 11, 6, 12, 0, 0)
REPOSITORY = Path(__file__).parents[2]


@functools.cache
def frozen(overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    return freeze(compose_config("train", [*overrides]).values)


def state(step: int, **changes: Any) -> dict[str, Any]:
    """Return a state like that of a training run, for a much smaller model."""
    weight = torch.full((64, 64), float(step))
    moment = datetime(2025, 11, 6, 12, tzinfo=UTC) + timedelta(minutes=step)
    return {
        "format": format.FORMAT,
        "step": step,
        "epoch": step // 10,
        "tokens_seen": step * 100,
        "train_loss": 4.0 - step / 100,
        "val_loss": 4.5 - step / 100,
        "best_val_loss": 4.5 - step / 100,
        "reason": "regular",
        "saved_at": moment.isoformat(timespec="milliseconds"),
        "run": {"id": "1a2b3c4d", "name": "gpt2", "parent": None},
        "config": frozen(),
        "overrides": [],
        "model": {"wte": weight, "head": weight, "bias": torch.zeros(3)},
        **changes,
    }


def save(run: Path, step: int, changes: dict[str, Any] | None = None, **reasons: Any) -> Path:
    """Save a state of `step` like a training run; return its file."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    request = SaveRequest(step, NOON + timedelta(minutes=step), **(reasons or {"regular": True}))
    encoded = format.encode(state(step, **(changes or {})))
    return Store(folder).put(encoded, request, Retention(10, 10))


def make_run(run: Path) -> Path:
    """A run with a file of every role: steps 10, 20, 30 regular, 20 and 30 best, 25 emergency."""
    save(run, 10, regular=True, epoch_ended=0)
    save(run, 20, regular=True, best=True, epoch_ended=1)
    save(run, 25, {"reason": "SIGTERM"}, emergency=True)
    save(run, 30, regular=True, best=True, epoch_ended=2)
    return run


def damage(path: Path, at: float = 0.5) -> None:
    """Flip one bit in place, so that every hard link of the file is damaged."""
    with path.open("r+b") as file:
        position = int(path.stat().st_size * at)
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def same_blocks(*paths: Path) -> bool:
    return len({path.stat().st_ino for path in paths}) == 1


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


def command(module: str, *arguments: str | Path, cwd: Path) -> Done:
    """Run the command in its own process."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = forkserver.start(f"gpt2ckpt.{module}", [*map(str, arguments)], cwd, environment)
    out, err = process.communicate()
    return Done(process.wait(), out, err)


def shell(line: str, cwd: Path) -> Done:
    """Run a command line in a shell, as a user does."""
    folder = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    bash = shutil.which("bash") or "sh"
    done = subprocess.run(
        [bash, "-c", line], cwd=cwd, env=environment, capture_output=True, text=True
    )
    return Done(done.returncode, done.stdout, done.stderr)
