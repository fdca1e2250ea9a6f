"""What the drill compares: real checkpoints, histories and logs that differ in one thing each."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2ckpt.checkpoint import format
from gpt2ckpt.recovery_drill.drill_run import _compare
from gpt2ckpt.recovery_drill.results import Kill
from gpt2ckpt.recovery_drill.training_process import Training

STEPS = 3
KILL = Kill("rolling_step_000002.pt", 2, 1)
LOG = "resuming from latest.pt at step 1\nreplay: 1 steps identical\n"


def training(folder: Path, name: str, step: int, loss: float, log: str, **state: Any) -> Training:
    """As a training leaves it: `loss` is that of step 2."""
    made = Training([], folder / name)
    made.checkpoints.mkdir(parents=True)
    whole = {"format": format.FORMAT, "step": step, "epoch": 0, "tokens_seen": 96, "rng": "ab"}
    whole |= {"data": {"position": 6}, "model": {"weight": torch.ones(4)}, **state}
    content = b"".join(format.encode(whole).buffers)
    (made.checkpoints / "latest.pt").write_bytes(content)
    events = [{"step": n, "train_loss": loss if n == 2 else 1.0} for n in range(1, STEPS + 1)]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (made.directory / "metrics.jsonl").write_text(lines)
    made.log.write_text(log)
    return made


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, None),
        ({"model": {"weight": torch.tensor([1, 1, 1, 1 + 1e-7])}}, "its values differ"),
        ({"rng": "ac"}, "rng: ac and ab"),
        ({"data": {"position": 8}}, "data.position: 8 and 6"),
        ({"step": 4}, "step: 4 and 3"),
        ({"loss": 0.5 + 1e-12}, "step 2: loss"),
        ({"log": LOG.replace("1 steps identical", "step 2 differs: loss 1 and 2")}, "step 2 diff"),
        ({"log": LOG + "not bitwise the same as without the stop: torch\n"}, "not bitwise"),
    ],
    ids=["nothing", "weights", "generators", "position", "step", "losses", "replay", "warning"],
)
def test_each_difference_is_found_and_named(
    tmp_path: Path, change: dict[str, Any], sentence: str | None
) -> None:
    same = {"step": STEPS, "loss": 0.5, "log": LOG}
    undisturbed = training(tmp_path, "undisturbed", **same)
    killed = training(tmp_path, "killed", **{**same, **change})
    found = _compare(killed, undisturbed, KILL, STEPS)
    assert found.is_exact is (sentence is None)
    assert len(found.differing) == (sentence is not None)
    assert sentence is None or sentence in found.differing[0]
