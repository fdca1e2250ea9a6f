"""Help and error messages are printed without importing torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment

RUN = """
import runpy, sys
name, sys.argv, code = sys.argv[1], sys.argv[1:], 0
try:
    runpy.run_module(f"gpt2ckpt.{name}", run_name="__main__")
except SystemExit as ended:
    code = ended.code or 0
unwanted = {"torch", "transformers", "wandb", "tensorboard"}
unwanted |= {"hydra", "omegaconf"} if name == "checkpoints" else set()
slow = sorted(unwanted & set(sys.modules))
print(code, *slow, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("train --help", 0),
        ("train --cfg job", 0),
        ("train optimizer.lrr=1", 2),
        ("train trainer.batch_size=0", 2),
        ("train data=text data.train=gone.txt", 1),
        ("sample --help", 0),
        ("evaluate batch_size=0 ckpt=a.pt", 2),
        ("prepare --help", 0),
        ("checkpoints list", 0),
        ("checkpoints show gone.pt", 1),
    ],
)
def test_commands_do_not_import_slow_packages_early(
    tmp_path: Path, command: str, code: int
) -> None:
    args = [sys.executable, "-c", RUN, *command.split()]
    done = subprocess.run(args, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == str(code)
    assert list(tmp_path.iterdir()) == []


def test_help_lists_config_groups_and_resume(tmp_path: Path) -> None:
    args = [sys.executable, "-m", "gpt2ckpt.train", "--help"]
    out = subprocess.run(args, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    for expected in ("+resume=latest", "optimizer: adamw, muon", "checkpoint: light, off, safe"):
        assert expected in out.stdout
    assert "schema" not in out.stdout  # what is registered for Hydra alone is nothing to choose
