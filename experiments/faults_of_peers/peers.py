"""The trainers of the comparison, with their checkpoint files and how to read them."""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.faults_of_peers import own


@dataclass(frozen=True)
class Peer:
    """A trainer; `newest` returns the files that a resume reads, `rate` the learning rate."""

    name: str
    module: str
    newest: Callable[[Path], list[Path]]
    rate: Callable[[Path], float]
    saved_step: Callable[[Path], int]
    preload: tuple[str, ...] = ()

    def losses(self, directory: Path) -> list[tuple[int, float]]:
        """Return the logged steps in order, with repetitions."""
        if self.module == "own":
            return own.losses(directory)
        path = directory / "losses.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(step), float(loss)) for step, loss in map(str.split, lines)]

    def final(self, directory: Path) -> dict[str, Any]:
        """Return the final weights."""
        if self.module == "own":
            return _load(directory / "checkpoints/latest.pt")["model"]
        return _load(directory / "final.pt")

    def main(self) -> None:
        """Train with the arguments in sys.argv."""
        importlib.import_module(f"experiments.faults_of_peers.{self.module}").main()


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=False)  # files of this study


def _folders(directory: Path) -> list[Path]:
    found = (directory / "checkpoints").glob("checkpoint-*")
    return sorted(found, key=lambda path: -int(path.name.split("-")[1]))


def _huggingface_newest(directory: Path) -> list[Path]:
    folder = _folders(directory)[0]
    return [folder / "model.safetensors", folder / "optimizer.pt"]


def _own_rate(directory: Path) -> float:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return float(json.loads(lines[-1])["lr"])


def _lightning_last(directory: Path) -> Path:
    folder = directory / "checkpoints"
    found = [*folder.glob("last*.ckpt"), *folder.glob("on_exception*.ckpt")]
    return max(found, key=lambda path: path.stat().st_mtime_ns)


PEERS = [
    Peer(
        "nanoGPT's way",
        "nanogpt",
        lambda d: [d / "ckpt.pt"],
        lambda d: _load(d / "ckpt.pt")["lr"],
        lambda d: _load(d / "ckpt.pt")["iter_num"],
        ("transformers.models.gpt2.modeling_gpt2",),
    ),
    Peer(
        "Lightning",
        "lightning",
        lambda d: [_lightning_last(d)],
        lambda d: _load(_lightning_last(d))["optimizer_states"][0]["param_groups"][0]["lr"],
        lambda d: _load(_lightning_last(d))["global_step"],
        ("lightning", "transformers.models.gpt2.modeling_gpt2"),
    ),
    Peer(
        "HF Trainer",
        "huggingface",
        _huggingface_newest,
        lambda d: _load(_folders(d)[0] / "optimizer.pt")["param_groups"][0]["lr"],
        lambda d: int(_folders(d)[0].name.split("-")[1]),
        ("transformers.trainer", "accelerate", "transformers.models.gpt2.modeling_gpt2"),
    ),
    Peer(
        "gpt2ckpt",
        "own",
        lambda d: [d / "checkpoints/latest.pt"],
        _own_rate,
        lambda d: _load(d / "checkpoints/latest.pt")["step"],
        ("gpt2ckpt.train", "gpt2ckpt.training.session"),
    ),
]
