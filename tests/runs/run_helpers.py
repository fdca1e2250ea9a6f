"""Helpers: run directories with small real checkpoints, and comparison of directories by bytes."""

import functools
import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from gpt2ckpt.checkpoint import format
from gpt2ckpt.checkpoint.retention import Retention, SaveRequest
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.config.replay import freeze

NOON = datetime(2025, 11, 6, 12, 0, 0)


@functools.cache
def frozen_of(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return the frozen config of a run; do not change it."""
    return freeze(compose_config("train", [*overrides]).values)


def state_of(step: int, overrides: list[str] | None = None) -> dict[str, Any]:
    """Return the part of a training state that finding and replaying need."""
    overrides = overrides or []
    return {
        "format": format.FORMAT,
        "step": step,
        "config": frozen_of(tuple(overrides)),
        "overrides": overrides,
        "run": {"id": "1a2b3c4d", "name": "gpt2", "parent": None},
        "model": {"weight": torch.full((64, 64), float(step))},
    }


def save(run: Path, step: int, overrides: list[str] | None = None, **reasons: Any) -> Path:
    """Save a state of `step` as a training run does; return its file."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    state = state_of(step, overrides)
    state["run"] = reasons.pop("owner", state["run"])
    if saved_at := reasons.pop("saved_at", None):
        state["saved_at"] = saved_at
    state["epoch"] = 1 + reasons.get("epoch_ended", -1)
    request = SaveRequest(step, NOON, **(reasons or {"regular": True}))
    return Store(folder).put(format.encode(state), request, Retention(10, 10))


def damage(path: Path, share: float = 0.5) -> None:
    """Flip one bit of a file in place, at a fraction of its size; all hard links are damaged."""
    with path.open("r+b") as file:
        position = int(share * path.stat().st_size)
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def tree(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Return each path below `folder` with its content, modification time and mode."""
    found = {}
    for path in sorted(folder.rglob("*")):
        info = path.stat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(folder))] = (content, info.st_mtime_ns, info.st_mode)
    return found
