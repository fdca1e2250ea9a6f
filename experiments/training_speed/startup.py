"""Measures the seconds from a command to its first step, help page or error message."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 5
TRAIN = [sys.executable, "-m", "gpt2ckpt.train"]
FIRST_STEP = "the first step of the default command"
# Each with the exit code that it must end with: a command that fails otherwise is not fast.
COMMANDS = {
    "import torch, for comparison": ([sys.executable, "-c", "import torch"], 0),
    "--help": ([*TRAIN, "--help"], 0),
    "a misspelt key": ([*TRAIN, "optimizer.lrr=1"], 2),
    "a value out of range": ([*TRAIN, "trainer.batch_size=0"], 2),
    "an unknown option": ([*TRAIN, "model=gpt2_tiny"], 2),
}


def measure() -> dict[str, list[float]]:
    """Run every command in turn, `REPEATS` times, in an empty folder."""
    times: dict[str, list[float]] = {}
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}  # works without an installation, too
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(REPEATS):
            first = _until_first_step(folder, environment)
            times.setdefault(FIRST_STEP, []).append(first)
            for name, (command, code) in COMMANDS.items():
                start = time.perf_counter()
                done = subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, check=False
                )
                times.setdefault(name, []).append(time.perf_counter() - start)
                if done.returncode != code:
                    raise SystemExit(f"{name} ended with {done.returncode} instead of {code}")
    return times


def _until_first_step(folder: str, environment: dict[str, str]) -> float:
    """Run `python -m gpt2ckpt.train` until it reports step 1, then end it."""
    start = time.perf_counter()
    with subprocess.Popen(
        TRAIN, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            fields = line.split()
            if fields[:1] == ["step"] and fields[1].startswith("1/"):
                seconds = time.perf_counter() - start
                process.kill()
                return seconds
    raise SystemExit(f"the default command ended without a step, with {process.returncode}")
