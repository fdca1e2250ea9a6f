"""Measures reading in several ways, from the page cache or from the device."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments.checkpoint_cost.savers import SAVERS
from experiments.checkpoint_cost.states import build_state
from gpt2ckpt.checkpoint import reading

BUFFER = 1 << 20  # bytes; the fastest of 256 KiB, 1, 2 and 8 MiB: it stays in the cache
LISTED = 100  # files
FILES = {  # what is read, in a folder of the saver's
    "gpt2ckpt": "latest.pt",
    "torch.save + fsync": "state.pt",
    "safetensors + fsync": "state.safetensors",
}


def prepare(name: str, folder: Path) -> None:
    """Write the state once by every saver, each into its own folder."""
    state = build_state(name)
    for variant in FILES:
        target = folder / variant
        target.mkdir(parents=True)
        saver = SAVERS[variant](target)
        saver.save(state, 1)
        saver.wait()


def measure(variant: str, folder: Path, *, cached: bool) -> dict[str, float]:
    """Return the seconds that `variant` takes for its file, and the size of the file."""
    kind, action = READERS[variant]
    path = folder / kind / FILES[kind]
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        _read(file) if cached else _drop(file)
    start = time.perf_counter()
    action(path)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": sum(file.stat().st_size for file in files)}


def list_many(folder: Path) -> dict[str, float]:
    """Return the seconds of the command `checkpoints list` for a hundred files of this size.

    The files are sparse: the first and last megabyte of a checkpoint with a hole between, since
    a listing does not read tensors.
    """
    source = folder / "gpt2ckpt" / FILES["gpt2ckpt"]
    many = folder / "many" / "checkpoints"
    many.mkdir(parents=True)
    size, ends = source.stat().st_size, 1 << 20
    for number in range(1, LISTED + 1):
        with source.open("rb") as file, (many / f"rolling_step_{number:06}.pt").open("wb") as copy:
            copy.write(file.read(ends))
            copy.seek(size - ends)
            file.seek(size - ends)
            copy.write(file.read())
    command = [sys.executable, "-m", "gpt2ckpt.checkpoints", "list", str(many.parent), "--json"]
    start = time.perf_counter()
    listed = json.loads(subprocess.check_output(command))
    seconds = time.perf_counter() - start
    assert len(listed) == LISTED and all(entry["size_bytes"] == size for entry in listed)
    shutil.rmtree(folder / "many")
    return {"seconds": seconds}


def _read(path: Path) -> None:
    buffer = bytearray(BUFFER)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _drop(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _load_torch(path: Path) -> None:
    torch.load(path, weights_only=True)


def _load_torch_mapped(path: Path) -> None:
    """Load by mmap and copy, since a training run must not change the file."""
    state = torch.load(path, weights_only=True, mmap=True)
    _copy(state)


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return value


def _load_safetensors(path: Path) -> None:
    from safetensors.torch import load_file

    _copy(load_file(path))


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "gpt2ckpt, verified": ("gpt2ckpt", reading.load),
    "torch.load": ("torch.save + fsync", _load_torch),
    "torch.load, mmap": ("torch.save + fsync", _load_torch_mapped),
    "safetensors": ("safetensors + fsync", _load_safetensors),
    "checkpoints verify": ("gpt2ckpt", reading.check),
    "reading the file": ("gpt2ckpt", _read),
}
RESTORES = ("gpt2ckpt, verified", "torch.load", "torch.load, mmap", "safetensors")
CHECKS = ("checkpoints verify", "reading the file")
