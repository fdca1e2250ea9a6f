"""A training run with an emergency save at each moment, after which its run directory is copied.

The copy is what a kill right after that moment would have left.

python -m experiments.exactness.source COPIES OVERRIDES..., also under torchrun.
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gpt2ckpt.train
from experiments.exactness.matrix import MOMENTS
from gpt2ckpt.training.step import Stepper, StepResult

PATIENCE = 120  # seconds until a save is on disk


def train_and_copy(copies: Path, directory: Path) -> None:
    """Run `gpt2ckpt.train` with sys.argv and copy its directory between steps."""
    real_step = Stepper.step

    def step(self: Stepper, state: Any, position: int) -> StepResult:
        if state.counters.step in MOMENTS.values() and os.environ.get("RANK", "0") == "0":
            _copy(directory, copies / str(state.counters.step), state.counters.step)
        result = real_step(self, state, position)
        if state.counters.step + 1 in MOMENTS.values():
            signal.raise_signal(signal.SIGUSR1)  # taken up when the step has ended
        return result

    Stepper.step = step  # type: ignore[method-assign]
    gpt2ckpt.train.main()


def _copy(directory: Path, copy: Path, step: int) -> None:
    """Wait for the emergency save, which is durable before the next step."""
    wanted = f"emergency_step_{step:06d}_*.pt"
    end = time.monotonic() + PATIENCE
    while not list((directory / "checkpoints").glob(wanted)):
        if time.monotonic() > end:
            raise SystemExit(f"no {wanted} in {directory}")
        time.sleep(0.01)
    shutil.copytree(directory, copy)


if __name__ == "__main__":
    given = next(word for word in sys.argv if word.startswith("hydra.run.dir="))
    target = Path(sys.argv.pop(1))
    train_and_copy(target, Path(given.partition("=")[2]))
