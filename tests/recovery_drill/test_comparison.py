"""The drill's comparison: real checkpoints, metrics and events that differ in one value each."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2ckpt.checkpoint import format
from gpt2ckpt.recovery_drill.drill_run import _compare
from gpt2ckpt.recovery_drill.results import Kill
from gpt2ckpt.recovery_drill.training_process import TrainingRun
from gpt2ckpt.runs.events import EventLog

STEPS = 3
KILL = Kill("rolling_step_000002.pt", 2, 1)
REPLAY = {"identical_steps": 1, "first_difference": None}


def training(
    folder: Path,
    name: str,
    *,
    step: int,
    loss: float,
    replay: dict[str, Any],
    not_exact: list[str],
    **state: Any,
) -> TrainingRun:
    """Write the files of a run of three steps; `loss` is the loss of step 2."""
    made = TrainingRun([], folder / name)
    made.checkpoints.mkdir(parents=True)
    whole = {"format": format.FORMAT, "step": step, "epoch": 0, "tokens_seen": 96, "rng": "ab"}
    whole |= {"data": {"position": 6}, "model": {"weight": torch.ones(4)}, **state}
    content = b"".join(format.encode(whole).buffers)
    (made.checkpoints / "latest.pt").write_bytes(content)
    events = [{"step": n, "train_loss": loss if n == 2 else 1.0} for n in range(1, STEPS + 1)]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (made.directory / "metrics.jsonl").write_text(lines)
    with EventLog(made.directory) as log:
        log.write("run_resumed", 1, not_exact=not_exact)
        log.write("replay_verified", 2, **replay)
    return made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"model": {"weight": torch.tensor([1, 1, 1, 1 + 1e-7])}}, "its values differ"),
        ({"rng": "ac"}, "rng: ac and ab"),
        ({"data": {"position": 8}}, "data.position: 8 and 6"),
        ({"step": 4}, "step: 4 and 3"),
        ({"loss": 0.5 + 1e-12}, "step 2: loss"),
        ({"replay": {**REPLAY, "first_difference": "step 2 differs: loss 1"}}, "step 2 differs"),
        ({"not_exact": ["torch 2.13 → 2.14"]}, "torch 2.13"),
    ],
    ids=["nothing", "weights", "generators", "position", "step", "losses", "replay", "libraries"],
)
def test_each_difference_is_reported(
    tmp_path: Path, change: dict[str, Any], message: str | None
) -> None:
    same = {"step": STEPS, "loss": 0.5, "replay": REPLAY, "not_exact": []}
    reference = training(tmp_path, "reference", **same)
    killed = training(tmp_path, "killed", **{**same, **change})
    found = _compare(killed, reference, KILL, STEPS)
    assert found.identical_steps == 1
    assert found.is_exact is (message is None)
    assert len(found.differing) == (message is not None)
    assert message is None or message in found.differing[0]
