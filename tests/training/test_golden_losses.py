"""The losses of fifty steps equal recorded losses, so that the numbers never change by accident.

The run is AdamW with decay, clipping, warm-up, cosine and accumulation, in float32 on one CPU
thread, without dropout (whose random numbers depend on the library that draws them). The losses
differ between processors and versions of PyTorch by rounding, which 50 steps enlarge. Measured
with other vector instructions (none, AVX2, AVX-512) and two threads: up to 7e-7 of a loss and 6e-6
of a gradient norm; the tolerances are about thirty times as large. They detect an eps of 1e-7 for
1e-8, a weight decay of 0.11 for 0.1, or a second beta of 0.951 for 0.95.

After an intended change: python -m pytest tests/training/test_golden_losses.py --write-golden
"""

import json
from pathlib import Path
from typing import Any

import pytest
from training_helpers import events, train

GOLDEN = Path(__file__).with_name("golden_losses.json")
TOLERANCES = {"train_loss": 2e-5, "val_loss": 2e-5, "grad_norm": 2e-4, "lr": 1e-9}
SETTINGS = [
    *("trainer.max_steps=50", "trainer.grad_accum=2", "trainer.eval_every=25"),
    *("optimizer.lr=1e-2", "checkpoint=off", "seed=1337"),
]


def test_losses_equal_recorded_losses(
    token_data: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    train([*token_data.overrides, *SETTINGS], tmp_path / "run")
    curve = {
        "train_loss": [event["train_loss"] for event in events(tmp_path / "run")],
        "grad_norm": [event["grad_norm"] for event in events(tmp_path / "run")],
        "lr": [event["lr"] for event in events(tmp_path / "run")],
        "val_loss": [event["val_loss"] for event in events(tmp_path / "run", "val_loss")],
    }
    if request.config.getoption("--write-golden"):
        GOLDEN.write_text(json.dumps(curve, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert len(golden["train_loss"]) == 50
    assert golden["train_loss"][-1] < golden["train_loss"][0] - 1  # the model learns
    for key, values in golden.items():
        assert curve[key] == pytest.approx(values, rel=TOLERANCES[key]), key
