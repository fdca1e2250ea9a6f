"""Runs with a failing watcher, for test_watchers.py and experiments/watchers.

Faults are real where possible: a stopped service, a pipe or terminal without a reader, system calls
that fail or hang. Exceptions and invalid results of Python libraries are injected by a
sitecustomize.py in PYTHONPATH.
"""

import contextlib
import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

import gpt2ckpt
from tests import forkserver, preload

Process = forkserver.Forked | subprocess.Popen[bytes]
HOUR = 3600  # seconds
PATIENCE = 300  # seconds that a training run may take on a busy machine
EXACT = ("model", "optimizer", "rng", "data", "step", "epoch", "tokens_seen", "train_loss")
MODEL = [
    *("data=tokens", "model.vocab_size=50304", "model.n_layer=2", "model.n_embd=16"),
    *("model.n_head=2", "model.block_size=32", "model.dropout=0.1", "trainer.batch_size=2"),
    *("trainer.eval_every=0", "trainer.device=cpu", "trainer.precision=float32"),
    *("trainer.threads=1", "trainer.log_every=1", "trainer.sample_tokens=8"),
    *("schedule=constant", "checkpoint.keep_rolling=3"),
]

INJECTED = """
import importlib.abc, importlib.util, os, sys, time
target, path, way = os.environ["INJECTED"].split(":")
def broken(*arguments, **more):
    if way == "raises":
        raise RuntimeError("injected")
    if way == "hangs":
        time.sleep(3600)
    return object()
def inject(module):
    *parents, name = path.split(".")
    for parent in parents:
        module = getattr(module, parent)
    setattr(module, name, broken)
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, where, old=None):
        if name != target:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), inject(module))
        return spec
if target in sys.modules:
    inject(sys.modules[target])
else:
    sys.meta_path.insert(0, Finder())
"""


@dataclass(frozen=True)
class Disturbance:
    """A fault of a watcher.

    Attributes:
        watcher: its name.
        way: how it fails.
        faults: system calls that fail or hang, in the form of tests/preload.py.
        injected: the library function to replace, as "module:attribute"; it raises, hangs or
            returns invalid values, as the first word of `way` states.
        console: the output: "file", "pipe" (without a reader), "closed", "terminal" or "stopped".
        logger: the config group of that name.
        is_service_stopped: whether W&B's service process gets SIGSTOP.
    """

    watcher: str
    way: str
    faults: tuple[tuple[str, int, str], ...] = ()
    injected: str = ""
    console: str = "file"
    logger: str = "none"
    is_service_stopped: bool = False

    @property
    def name(self) -> str:
        """The name in tables and tests."""
        return f"{self.watcher}: {self.way}"


BOARD = {"watcher": "TensorBoard", "logger": "tensorboard"}
WANDB = {"watcher": "W&B", "logger": "wandb"}
BAR = {"watcher": "progress bar", "console": "terminal", "injected": "tqdm:tqdm.refresh"}
NONE = Disturbance("nothing", "undisturbed")
ALL = [
    Disturbance(**BOARD, way="raises", faults=(("write", preload.EIO, "tfevents"),)),
    Disturbance(**BOARD, way="hangs", faults=(("write", -HOUR, "tfevents"),)),
    Disturbance(**BOARD, way="hangs at its opening", faults=(("open", -HOUR, "tfevents"),)),
    Disturbance(
        **BOARD,
        way="nonsense",
        injected="tensorboard.summary.writer.record_writer:RecordWriter.write",
    ),
    Disturbance(**WANDB, way="raises", injected="wandb:init"),
    Disturbance(**WANDB, way="hangs (service stopped)", is_service_stopped=True),
    Disturbance(**WANDB, way="hangs at its opening", injected="wandb:init"),
    Disturbance(**WANDB, way="nonsense", injected="wandb:init"),
    Disturbance("console", "raises (closed pipe)", console="closed"),
    Disturbance("console", "hangs (pipe without a reader)", console="pipe"),
    Disturbance("console", "hangs (terminal stopped by Ctrl+S)", console="stopped"),
    Disturbance("text sample", "raises", faults=(("open", preload.EIO, "encoder.json"),)),
    Disturbance("text sample", "hangs", faults=(("open", -HOUR, "encoder.json"),)),
    Disturbance("text sample", "nonsense", injected="tiktoken:Encoding.decode"),
    Disturbance("disk space", "raises", faults=(("statvfs", preload.EIO, "run"),)),
    Disturbance("disk space", "hangs", faults=(("statvfs", -HOUR, "run"),)),
    Disturbance("disk space", "hangs (counting)", faults=(("opendir", -HOUR, "wandb"),)),
    Disturbance("disk space", "nonsense", injected="shutil:disk_usage"),
    Disturbance("scrub", "raises", faults=(("read", preload.EIO, "latest_backup.pt$"),)),
    Disturbance("scrub", "hangs", faults=(("read", -HOUR, "latest_backup.pt$"),)),
    Disturbance("scrub", "nonsense", injected="gpt2ckpt.checkpoint.scrub:check"),
    Disturbance(**BAR, way="raises"),
    Disturbance(**BAR, way="hangs"),
    Disturbance(**BAR, way="nonsense"),
]


@dataclass(frozen=True)
class Ended:
    """The result of a training run."""

    code: int
    seconds: float
    run: Path
    output: str

    def differences(self, undisturbed: "Ended") -> list[str]:
        """Return the differences from an undisturbed training; states are compared bitwise."""
        found = [] if self.code == undisturbed.code else [f"exit code {self.code}"]
        own, other = (_latest(ended.run) for ended in (self, undisturbed))
        found += [f"latest.pt: {key}" for key in EXACT if not _same(own[key], other[key])]
        if _history(self.run) != _history(undisturbed.run):
            found.append("metrics.jsonl")
        return found


def train(
    disturbance: Disturbance,
    overrides: list[str],
    folder: Path,
    library: Path,
    *,
    stop_after: int | None = None,
    forks: bool = False,
) -> Ended:
    """Train in a new folder; send SIGTERM after `stop_after` steps if it is given.

    With `forks` the process is forked, which saves the imports, unless a library is replaced.
    """
    folder.mkdir(parents=True)
    (folder / "wandb").mkdir()  # the counting of the disk enters it
    (folder / "sitecustomize.py").write_text(INJECTED)
    own = preload.Faults(library, folder / "faults.txt")
    own.set(*disturbance.faults)
    overrides = [*overrides, f"logger={disturbance.logger}", "hydra.run.dir=run"]
    log, run = folder / "output.txt", folder / "run"
    begun = time.monotonic()
    with _console(disturbance.console, log) as output:
        environment = _environment(disturbance, own, folder)
        process = _start(overrides, folder, environment, output, forks=forks)
        os.close(output)
        try:
            with _stopped_service(process, disturbance.is_service_stopped):
                if stop_after is not None:
                    _wait_for_step(process, run, stop_after)
                    process.send_signal(signal.SIGTERM)
                code = process.wait(PATIENCE)
        finally:
            process.kill()
    seconds = time.monotonic() - begun
    return Ended(code, seconds, run, log.read_text() if log.exists() else "")


def _start(
    overrides: list[str], folder: Path, environment: dict[str, str], output: int, *, forks: bool
) -> Process:
    if forks and "INJECTED" not in environment:
        return forkserver.start("gpt2ckpt.train", overrides, folder, environment, output=output)
    return subprocess.Popen(
        [sys.executable, "-m", "gpt2ckpt.train", *overrides],
        **{"cwd": folder, "env": environment, "stdout": output, "stderr": output},
    )


def _environment(disturbance: Disturbance, faults: preload.Faults, folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    root = Path(gpt2ckpt.__file__).resolve().parents[1]
    paths = [str(root)]
    more = {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "OMP_NUM_THREADS": "1"}
    if disturbance.faults:
        more |= faults.environment
    if disturbance.injected:
        more["INJECTED"] = f"{disturbance.injected}:{disturbance.way.split()[0]}"
        paths.insert(0, str(folder))
    return {**kept, **more, "PYTHONPATH": os.pathsep.join(paths)}


@contextlib.contextmanager
def _console(kind: str, log: Path) -> Iterator[int]:
    """Yield a descriptor for the output of a training run with the reader of this fault."""
    if kind == "file":
        yield os.open(log, os.O_WRONLY | os.O_CREAT)
        return
    read, write = pty.openpty() if kind in ("terminal", "stopped") else os.pipe()
    if kind == "closed":
        os.close(read)
    elif kind == "pipe":
        _fill(write)
    elif kind == "stopped":
        termios.tcflow(write, termios.TCOOFF)
    else:
        termios.tcsetwinsize(write, (24, 80))
        threading.Thread(target=_read_all, args=(read, log), daemon=True).start()
    yield write
    if kind in ("pipe", "stopped"):
        os.close(read)


def _fill(pipe: int) -> None:
    """Fill the pipe completely."""
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(pipe, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(pipe, b"x")
    os.set_blocking(pipe, True)


def _read_all(terminal: int, log: Path) -> None:
    with log.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while data := os.read(terminal, 4096):
            file.write(data)
    os.close(terminal)


@contextlib.contextmanager
def _stopped_service(process: Process, is_wanted: bool) -> Iterator[None]:
    """Stop the service process of W&B when it starts; kill it at the end."""
    stopped: list[psutil.Process] = []

    def stop() -> None:
        while process.poll() is None and not stopped:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(process.pid).children(recursive=True)
                stopped.extend(child for child in children if "wandb" in child.name())
                for child in stopped:
                    child.suspend()
            time.sleep(0.02)

    thread = threading.Thread(target=stop, daemon=True)
    if is_wanted:
        thread.start()
    try:
        yield
        assert bool(stopped) is is_wanted, "there was no service to stop"
    finally:
        for child in stopped:
            with contextlib.suppress(psutil.Error):
                child.kill()


def _wait_for_step(process: Process, run: Path, step: int) -> None:
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if len(_history(run)) >= step:
            return
        time.sleep(0.02)


def _history(run: Path) -> list[tuple[int, float]]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return [(event["step"], event["train_loss"]) for event in events]


def _latest(run: Path) -> dict[str, object]:
    state: dict[str, object] = torch.load(run / "checkpoints" / "latest.pt", weights_only=True)
    return state


def _same(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(first[k], second[k]) for k in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    return type(first) is type(second) and first == second
