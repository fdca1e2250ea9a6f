"""Runs complete commands and reads their results."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import gpt2ckpt

if TYPE_CHECKING:
    from tests.forkserver import Forked

    Process = Forked | subprocess.Popen[str]

ROOT = Path(gpt2ckpt.__file__).resolve().parents[1]
PATIENCE = 300  # seconds that a command may take on a busy machine


@dataclass(frozen=True)
class Done:
    """The exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """The single line of an error message."""
        [line] = self.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")


def environment() -> dict[str, str]:
    """Return an environment that finds this interpreter and package, without full tracebacks."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    python_path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    kept = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    return {**kept, "PATH": path, "PYTHONPATH": python_path}


def start(
    name: str, args: Sequence[str], cwd: Path, more: Mapping[str, str] | None = None
) -> "Forked":
    """`python -m gpt2ckpt.NAME WORDS` in the background, with `more` in its environment.

    A fork of a process that has imported torch: see forkserver.py.
    """
    from tests import forkserver  # found by pytest, not by ctrl_c.py as a script

    return forkserver.start(f"gpt2ckpt.{name}", args, cwd, {**environment(), **(more or {})})


def start_interpreter(
    name: str, args: Sequence[str], cwd: Path, more: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """The same in a new interpreter, for tests of its start, its code or its environment."""
    return subprocess.Popen(
        [sys.executable, "-m", f"gpt2ckpt.{name}", *args],
        **{"cwd": cwd, "env": {**environment(), **(more or {})}, "text": True},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
    )


def finish(process: "Process") -> Done:
    out, err = process.communicate(timeout=PATIENCE)
    return Done(process.returncode, out, err)


def run(name: str, args: Sequence[str], cwd: Path) -> Done:
    return finish(start(name, args, cwd))


def side_by_side(cwd: Path, commands: dict[str, tuple[str, Sequence[str]]]) -> dict[str, Done]:
    """Independent commands, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        jobs = {key: pool.submit(run, *command, cwd) for key, command in commands.items()}
        return {key: job.result() for key, job in jobs.items()}


def succeed(done: Done) -> Done:
    assert done.code == 0, done.err + done.out
    return done


def wait_until(process: "Process", holds: Callable[[], bool]) -> None:
    """Wait until a condition holds; fail if the process ends before."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert process.poll() is None and time.monotonic() < end, finish(process)
        time.sleep(0.002)


def events(run_directory: Path, key: str = "train_loss") -> list[tuple[int, float]]:
    """Return step and value of each event of metrics.jsonl with `key`."""
    path = run_directory / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    complete = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(event["step"], event[key]) for event in complete if key in event]


def steps_done(run_directory: Path) -> int:
    return max((step for step, _ in events(run_directory)), default=0)


def opened(path: Path) -> dict[str, Any]:
    """Return a checkpoint loaded by plain torch.load."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def latest(run_directory: Path) -> dict[str, Any]:
    return opened(run_directory / "checkpoints" / "latest.pt")


def same_bits(first: Any, second: Any) -> bool:
    """Return whether two states have equal structure and bitwise equal tensors."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same_bits(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same_bits, first, second))
    return type(first) is type(second) and bool(first == second)


def tree(folder: Path) -> dict[str, tuple[str, int]]:
    """Return content and modification time of every path below `folder`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        found[str(path.relative_to(folder))] = (content, path.stat().st_mtime_ns)
    return found


def start_program(text: str, cwd: Path, *args: str) -> "Forked":
    """A Python program of a user in the background, as a file in `cwd`."""
    from tests import forkserver

    program = cwd / "program.py"
    program.write_text(text)
    return forkserver.start(str(program), args, cwd, environment())


def run_program(text: str, cwd: Path, *args: str) -> Done:
    """Run a Python program of a user to its end."""
    return succeed(finish(start_program(text, cwd, *args)))
