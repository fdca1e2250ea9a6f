"""Seconds from a command to its first step, to its help, and to the answer to a mistake."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 5
TRAIN = [sys.executable, "-m", "gpt2ckpt.train"]
COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "--help": [*TRAIN, "--help"],
    "a misspelt key": [*TRAIN, "optimizer.lrr=1"],
    "a value out of range": [*TRAIN, "trainer.batch_size=0"],
    "an unknown option": [*TRAIN, "model=gpt2_tiny"],
}
FIRST_STEP = "the first step of the default command"


def measure() -> dict[str, list[float]]:
    """Every command in turn, `REPEATS` times over, in an empty folder."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(REPEATS):
            times.setdefault(FIRST_STEP, []).append(_until_first_step(Path(folder)))
            for name, command in COMMANDS.items():
                start = time.perf_counter()
                subprocess.run(command, cwd=folder, capture_output=True, check=False)
                times.setdefault(name, []).append(time.perf_counter() - start)
    return times


def _until_first_step(folder: Path) -> float:
    """Runs `python -m gpt2ckpt.train` until it reports step 1, and ends it there."""
    start = time.perf_counter()
    with subprocess.Popen(TRAIN, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.split()[:2][-1:] and line.startswith("step") and line.split()[1][:2] == "1/":
                seconds = time.perf_counter() - start
                process.kill()
                return seconds
    raise RuntimeError(f"the default command ended without a step, with {process.returncode}")
