"""Runs of a very small model, started by forking a process that has imported torch.

A start of the command takes seconds, mostly to import torch and compose the config. There are three
ways to start, from fast to complete:
- `fork`: a process that has imported everything and composed the config, but computed no tensor,
  forks a child. The child does the rest of the command: find the state to resume, replay the
  config, check it, claim or lock the directory, train with signals, saves and logs, and exit;
- `fork_main`: the child runs the `main()` of the command, including Hydra;
- `command`: a new interpreter runs the command line.
"""

import contextlib
import copy
import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gpt2ckpt.train
from gpt2ckpt.application import reported_errors
from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.newest_valid import find_valid
from gpt2ckpt.checkpoint.reading import check, load
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.errors import CheckpointError, UserError
from gpt2ckpt.loggers import metrics_file
from gpt2ckpt.runs.resume import Scope
from gpt2ckpt.runs.start import find_start
from gpt2ckpt.runs.take_directory import complete_interrupted_save, take_directory
from gpt2ckpt.signals.training import exit_code
from gpt2ckpt.training.hardware import choose_hardware
from gpt2ckpt.training.session import Session
from gpt2ckpt.training.validate_run import finished_notice, validate_run

PATIENCE = 120  # seconds that a start may take on a busy machine
STEPS = 24
WORDS = [
    *("data=tokens", "data.train=train.bin", "data.val=val.bin", "logger=none"),
    *("model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=16"),
    *("model.vocab_size=64", "model.dropout=0.1", "trainer.batch_size=2", "trainer.grad_accum=2"),
    *(f"trainer.max_steps={STEPS}", "trainer.log_every=1", "trainer.eval_every=6"),
    *("trainer.eval_steps=2", "trainer.sample_every=0", "trainer.threads=1"),
    *("trainer.device=cpu", "trainer.precision=float32", "schedule.warmup_steps=3"),
    *("checkpoint.save_every=4", "checkpoint.keep_rolling=3"),
]
SAVED = re.compile(r"saved \S+ \(step (\d+),")
COMPARED = ("model", "optimizer", "rng", "data", "step", "epoch", "tokens_seen", "best_val_loss")


def warm_up() -> None:
    """Import what a child needs, without computing tensors, which would prevent forks."""
    torch.set_num_threads(1)
    compose(WORDS)


def make_data(folder: Path) -> None:
    """Write random walks over 64 tokens; an epoch is a little more than nine steps."""
    folder.mkdir(parents=True, exist_ok=True)
    walk = np.cumsum(np.random.default_rng(0).integers(-2, 3, 3000)) % 64
    walk[: 37 * 16 + 1].astype("<u2").tofile(folder / "train.bin")
    walk[2000:].astype("<u2").tofile(folder / "val.bin")


@dataclass(frozen=True)
class Child:
    """A started command; `output` is the file with its output."""

    pid: int
    output: Path

    def ended(self) -> int | None:
        """Return the exit code, -N for signal N, or None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for the end; kill a hanging process and raise TimeoutError."""
        end = time.monotonic() + seconds
        while (code := self.ended()) is None:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"no end after {seconds} s:\n{self.text()[-2000:]}")
            time.sleep(0.002)
        return code

    def kill(self) -> None:
        """Send SIGKILL to the running process."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def text(self) -> str:
        """Return the output so far."""
        return self.output.read_text(errors="replace")


def fork(overrides: list[str], run: Path, output: Path, what: str | None = "auto") -> Child:
    """Train in `run` with `+resume=WHAT` in a forked child, without composing a config."""

    def train() -> int:
        values = {"resume": what, "fork": False} if what else compose(overrides)
        start = find_start(values, overrides, Scope(run.parent, run), compose, locks=True)
        validated = validate_run(start)
        if finished_notice(start, validated):
            print("\n".join(complete_interrupted_save(start)))
            return 0
        trainer = validated.config.trainer
        recorded = start.state.environment if start.state else None
        hardware = choose_hardware(trainer.device, trainer.precision, trainer.threads, recorded)
        with reported_errors(), take_directory(start, run, is_given=True).lock:
            for line in start.notices():
                print(line)
            stopped = Session(run, start, validated, hardware).run().stopped
        return exit_code(stopped) if stopped else 0

    return _child(train, run.parent, output)


def fork_main(overrides: list[str], run: Path, output: Path, what: str | None = "auto") -> Child:
    """Do the same by the `main()` of the command."""

    def main() -> int:
        sys.argv = ["gpt2ckpt.train", *_complete(overrides, run, what)]
        gpt2ckpt.train.main()
        return 0

    return _child(main, run.parent, output)


def _complete(overrides: list[str], run: Path, what: str | None) -> list[str]:
    return [*overrides, f"hydra.run.dir={run}", *([f"+resume={what}"] if what else [])]


def compose(overrides: list[str]) -> dict[str, Any]:
    """Return the values of a config, composed once per process tree."""
    return copy.deepcopy(_composed(tuple(overrides)))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    return compose_config("train", list(overrides)).values


def _child(action: Callable[[], int], cwd: Path, output: Path) -> Child:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("")  # a child may be killed before it has begun
    pid = os.fork()
    if pid:
        return Child(pid, output)
    code: Any = 70
    try:
        os.chdir(cwd)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
        code = action()
    except SystemExit as stop:
        code = stop.code or 0
    except UserError as error:
        print(f"error: {error}")
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)  # in any case: it must not run on in here


def command(overrides: list[str], run: Path, output: Path, what: str | None = "auto") -> Child:
    """Do the same by the command line in a new interpreter."""
    output.parent.mkdir(parents=True, exist_ok=True)
    overrides = _complete(overrides, run, what)
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpt2ckpt.train", *overrides],
            **{"cwd": run.parent, "stdout": file, "stderr": subprocess.STDOUT},
        )
    process.returncode = 0  # it is waited for by `Child`
    return Child(process.pid, output)


def acknowledged(output: str) -> int:
    """Return the newest step reported as saved; 0 if there is none."""
    return max((int(step) for step in SAVED.findall(output)), default=0)


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    events = metrics_file.read(path) if path.exists() else []
    return max((event["step"] for event in events if "train_loss" in event), default=0)


def losses(run: Path) -> list[tuple[int, float]]:
    events = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(event["step"], event["train_loss"]) for event in events if "train_loss" in event]


def newest_valid(run: Path) -> int:
    """Return the step from which a resume would start; 0 for a new run."""
    try:
        return int(find_valid(run / "checkpoints", names.Role.LATEST).state.step)
    except CheckpointError:
        return 0


def damaged_files(run: Path) -> list[str]:
    """Return the roles with a damaged file."""
    found = []
    for path in Store(run / "checkpoints").files():
        try:
            check(path)
        except CheckpointError as error:
            found.append(str(error))
    return found


def final_state(run: Path) -> dict[str, Any]:
    state = load(run / "checkpoints" / names.LATEST)
    return {key: state[key] for key in COMPARED}


def best_step(run: Path) -> int:
    """Return the step in best_model.pt, not of a fallback that a resume would use."""
    return int(load(run / "checkpoints" / names.BEST)["step"])


def differing(first: Any, second: Any, path: str = "") -> str | None:
    """Return the first difference between two states, or None."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape
        same = same and first.numpy().tobytes() == second.numpy().tobytes()
        return None if same else path
    if isinstance(first, list) and all(isinstance(item, int | str) for item in first):
        return None if first == second else path  # the 625 numbers of a generator
    pairs: list[tuple[Any, Any, str]] = []
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        pairs = [(first[key], second[key], f"{path}.{key}") for key in first]
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = [(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(first, second, strict=True))]
    elif type(first) is not type(second) or first != second:
        return path
    return next((where for pair in pairs if (where := differing(*pair))), None)
