"""Train in this process from command-line overrides, and compare states bitwise."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.runs.resume import Scope
from gpt2ckpt.runs.start import Start, find_start
from gpt2ckpt.runs.take_directory import take_directory
from gpt2ckpt.training.callbacks import Callback, Callbacks
from gpt2ckpt.training.hardware import choose_hardware
from gpt2ckpt.training.session import Outcome, Session
from gpt2ckpt.training.validate_run import ValidatedRun, validate_run


def start_of(overrides: list[str], directory: Path, *, locks: bool = False) -> Start:
    """Return the start of a command line; `locks` locks the directory, as training does."""
    launch = [word for word in overrides if word.lstrip("+").startswith(("resume=", "fork="))]
    return find_start(
        *(compose_config("train", launch or overrides).values, overrides),
        Scope(directory.parent, directory),
        lambda words: compose_config("train", words).values,
        locks=locks,
    )


def train(overrides: list[str], directory: Path, callbacks: Sequence[Callback] = ()) -> Outcome:
    """Train as the command does between reading its command line and its exit code."""
    with (start := start_of(overrides, directory, locks=True)).held():
        validated: ValidatedRun = validate_run(start)
        if callbacks:
            opened = Callbacks(callbacks)
            opened.open(start)
            validated = dataclasses.replace(validated, callbacks=opened)
        trainer = validated.config.trainer
        recorded = start.state.environment if start.state else None
        hardware = choose_hardware(trainer.device, trainer.precision, trainer.threads, recorded)
        claim = take_directory(start, directory, is_given=True)
        with process_switches_restored(), claim.lock:
            return Session(claim.directory, start, validated, hardware, lock=claim.lock).run()


@contextlib.contextmanager
def process_switches_restored() -> Iterator[None]:
    """Restore the process-wide settings of PyTorch for the other tests."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    precision = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_float32_matmul_precision(precision)


def events(directory: Path, key: str = "train_loss") -> list[dict[str, Any]]:
    """Return the events of metrics.jsonl that have `key`."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if key in event]


def differing(first: Any, second: Any, path: str = "") -> list[str]:
    """Return the dotted names of all values in which two states differ in any bit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and first.shape == second.shape
        same = same and first.numpy().tobytes() == second.numpy().tobytes()
        return [] if same else [path]
    if dataclasses.is_dataclass(first) and type(first) is type(second):
        first, second = vars(first), vars(second)
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            return [f"{path} (keys)"]
        pairs = [(key, first[key], second[key]) for key in first]
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple):
        if len(first) != len(second):
            return [f"{path} (length)"]
        pairs = [(str(i), *pair) for i, pair in enumerate(zip(first, second, strict=True))]
    else:
        return [] if type(first) is type(second) and first == second else [path]
    return [name for key, a, b in pairs for name in differing(a, b, f"{path}.{key}".lstrip("."))]
