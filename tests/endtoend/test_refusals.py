"""Invalid commands end with one error message and an exit code before writing."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Done, environment, run, side_by_side, tree

from gpt2ckpt.runs.lock import RunLock

WRONG = {
    # overrides after the command: exit code, and what the sentence must say
    "optimizer.lrr=1e-3": (2, "Did you mean optimizer.lr?"),
    "model=gpt2_nanoo": (2, "Did you mean model=gpt2_nano?"),
    "trainer.max_steps=ten": (2, "trainer.max_steps=ten is not possible"),
    "optimizer.kind=os.system": (2, "it must be one of adamw, muon"),
    "--cfg job trainer=5": (2, "trainer=5 is not an option: give trainer=NAME"),
    "--cfg job optimizer.lr=fast": (2, "optimizer.lr must be a number"),
    "no_override": (2, "'no_override' is not an override of the form key=value"),
    "=": (2, "'=' is not an override of the form key=value"),
    "hydra.run.dir=": (2, "hydra.run.dir is empty: give a directory, or leave it out"),
    "--multirn": (2, "Did you mean --multirun?"),
    "--config-name=trian": (2, "there is no config trian"),
    "--config-dir=nowhere": (2, "there is no such directory"),
    "seed=18446744073709551616": (2, "seed is 18446744073709551616; it must be at most"),
    "hydra.run.dir=/proc/version": (1, "cannot be created (/proc/version is a file): pass a"),
    "+resume=auto hydra.run.dir=/dev/null": (1, "run directory /dev/null cannot be created"),
    "resume=lates": (2, "Did you mean latest?"),
    "-m optimizer.lr=1e-3,-1": (2, "optimizer.lr=-1.0 is out of range"),
    "data=text data.train=gone.txt": (1, "gone.txt"),
    "data=tokens data.train='gone/*.bin' data.val=gone.bin": (1, "gone"),
    "model.init_from=gone.pt": (1, "gone.pt"),
    "+resume=latest": (1, "there is no checkpoint in outputs"),
    "+resume=gone.pt": (1, "resume=gone.pt: there is no such file or directory"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """Run all commands in one directory, which must stay empty."""
    cwd = tmp_path_factory.mktemp("empty")
    done = side_by_side(cwd, {overrides: ("train", shlex.split(overrides)) for overrides in WRONG})
    assert tree(cwd) == {}
    return done


@pytest.mark.parametrize("overrides", WRONG)
def test_wrong_command_is_refused_and_writes_nothing(
    refused: dict[str, Done], overrides: str
) -> None:
    code, expected = WRONG[overrides]
    done = refused[overrides]
    assert expected in done.message
    assert done.code == code
    assert done.out == ""


@pytest.mark.parametrize(
    ("name", "overrides", "code", "expected"),
    [
        ("evaluate", "", 2, "ckpt is missing: pass ckpt=PATH"),
        ("evaluate", "ckpt=gone.pt", 1, "ckpt=gone.pt: there is no such file or directory"),
        ("sample", "ckpt=a.pt temprature=1", 2, "Did you mean temperature?"),
        ("sample", "ckpt=a.pt temperature=hot", 2, "temperature must be a number"),
        ("sample", "ckpt=a.pt temperature=-1", 2, "temperature is -1.0; it must be at least 0"),
        ("prepare", "data.train=gone.txt out=shards", 1, "gone.txt"),
        ("prepare", "data=tokens", 2, "data=tokens is already sharded: pass data=text"),
        ("prepare", "data=tokens data.train=a out=b", 2, "data=tokens is already sharded"),
        ("prepare", "-m data.train=a.txt out=b,c", 2, "prepare has no multirun"),
    ],
)
def test_other_commands_refuse_in_the_same_way(
    tmp_path: Path, name: str, overrides: str, code: int, expected: str
) -> None:
    done = run(name, overrides.split(), tmp_path)
    assert expected in done.message
    assert (done.code, done.out, tree(tmp_path)) == (code, "", {})


def test_error_names_an_unwritable_directory(tmp_path: Path, token_data: Any) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if os.access(closed, os.W_OK):
        closed = Path("/proc/gpt2ckpt")  # even root cannot create a directory there
    overrides = [*token_data.overrides, f"hydra.run.dir={closed}/run"]
    done = run("train", overrides, tmp_path)
    assert done.code == 1
    assert f"the run directory {closed}/run cannot be created" in done.message
    assert "hydra.run.dir=DIR" in done.message


def test_running_run_is_not_resumed(reference: Any, tmp_path: Path) -> None:
    before = tree(reference.directory)
    with RunLock(reference.directory):
        overrides = ["+resume=latest", f"hydra.run.dir={reference.directory}"]
        done = run("train", overrides, tmp_path)
    assert done.code == 1
    assert f"{reference.directory} is being trained by process {os.getpid()} on " in done.message
    assert tree(reference.directory) == before


def test_hydra_full_error_prints_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpt2ckpt.train", "seed=-1"]
    env = {**environment(), "HYDRA_FULL_ERROR": "1"}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: seed is -1; it must be at least 0"
    assert done.returncode == 2
