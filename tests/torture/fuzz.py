"""Passes mutated files to every reader: each is read or refused with an error message.

There must be no other exception, no crash, no hang, bounded memory, and no code execution. A batch
of inputs runs in its own process, in which an audit hook reports forbidden actions: processes,
sockets, changed files, unpickling. A changed checkpoint must be refused unless its seal was
recomputed.
"""

import contextlib
import fcntl
import io
import json
import mmap
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2ckpt.checkpoint import format
from gpt2ckpt.checkpoint.state import CheckpointState
from gpt2ckpt.checkpoints import SUBCOMMANDS
from gpt2ckpt.config.checks import check_config
from gpt2ckpt.config.recorded import safe_overrides
from gpt2ckpt.config.registry import build_typed
from gpt2ckpt.config.replay import freeze, task_overrides
from gpt2ckpt.config.schema import ModelConfig
from gpt2ckpt.data.token_files import open_token_file
from gpt2ckpt.data.tokenization import read_pieces
from gpt2ckpt.data.tokens import Piece, TokenStream
from gpt2ckpt.errors import CheckpointError, InputError, UserError
from gpt2ckpt.loggers import metrics_file, wandb_offline
from gpt2ckpt.model.convert import load_pretrained
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.model.huggingface import save_huggingface
from gpt2ckpt.runs.lock import RunLock
from gpt2ckpt.tools.command_line import call
from tests.torture import mutation, tiny
from tests.torture.tally import Tally

BATCH = 500
MEMORY = 128 << 20  # bytes that one input, of at most some 100 KB, may make resident
ADDRESSES = 8 << 30  # bytes of addresses beyond those in use: protects the machine
SECONDS = 30  # that one input may take, on a busy machine
FORBIDDEN = {
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.putenv", "os.chmod"),
    *("subprocess.Popen", "socket.connect", "socket.bind", "pickle.find_class", "ctypes.dlopen"),
    *("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("shutil.rmtree", "shutil.move", "shutil.copyfile", "code.__new__", "os.kill"),
}
_armed: list[str] | None = None  # what the audit hook saw while a reader ran


@dataclass(frozen=True)
class Target:
    """A reader: `make` returns an input, `read` reads it; unsealed input must be refused."""

    make: Callable[[random.Random], bytes]
    read: Callable[[bytes], None]
    weight: float = 1


def torture(folder: Path, inputs: int, seed: int) -> Tally:
    """Read `count` inputs in batches, each in its own process."""
    tally, begun = Tally("fuzzed inputs"), time.monotonic()
    targets = _targets(folder)
    done = 0
    while done < inputs:
        count = min(BATCH, inputs - done)
        done += _batch(targets, seed + done, count, tally)
        tally.done = done
    tally.seconds = time.monotonic() - begun
    return tally


def _batch(targets: dict[str, Target], seed: int, count: int, tally: Tally) -> int:
    """Read the inputs of the seeds from `seed` on; return how many, including a fatal one."""
    shared = mmap.mmap(-1, 8)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(targets, seed, count, shared, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        report = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status == 0:
        counts, failures = json.loads(report)
        tally.counts += Counter(counts)
        for failed, sentence in failures:
            tally.fail(failed, sentence)
        return count
    at = int.from_bytes(shared[:8], "little")
    code = os.waitstatus_to_exitcode(status)
    tally.fail(at, f"the process died with {code}: {report.decode(errors='replace')[-500:]}")
    return at - seed + 1


def _child(targets: dict[str, Target], seed: int, count: int, shared: mmap.mmap, pipe: int) -> None:
    """Run a batch and end the process."""
    counts: Counter[str] = Counter()
    failures: list[tuple[int, str]] = []
    try:
        _limit()
        for number in range(seed, seed + count):
            shared[:8] = number.to_bytes(8, "little")
            name, problem = _one(targets, number)
            counts[name] += 1
            if problem:
                failures.append((number, problem))
        os.write(pipe, json.dumps([counts, failures]).encode())
        os._exit(0)
    except BaseException:
        os.write(pipe, traceback.format_exc().encode())
        os._exit(1)


def _limit() -> None:
    addresses = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (addresses + ADDRESSES, addresses + ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def too_long(number: int, frame: Any) -> None:
        raise TimeoutError(f"it takes more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    sys.addaudithook(_audit)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _armed is None:
        return
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if event in FORBIDDEN or (event == "open" and (arguments[2] or 0) & writes):
        _armed.append(f"{event} {arguments!r}"[:200])


def _one(targets: dict[str, Target], seed: int) -> tuple[str, str | None]:
    """Read one input; return the reader, the result and the problem if there is one."""
    global _armed  # noqa: PLW0603
    dice = random.Random(seed)
    name = dice.choices(list(targets), [target.weight for target in targets.values()])[0]
    data = targets[name].make(dice)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    problem, outcome, seen = None, "read", []
    signal.alarm(SECONDS)
    try:
        _armed = seen
        targets[name].read(data)
    except UserError as error:
        outcome = "refused"
        if not str(error).isprintable():
            problem = f"{name}: control characters for the terminal in {error!r}"[:300]
    except BaseException:
        outcome, problem = "FAILED", f"{name}: {traceback.format_exc()[-700:]}"
    finally:
        _armed = None
        signal.alarm(0)
    if seen:
        problem = f"{name}: a reader did {seen[0]}"
    more = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak)
    if more > MEMORY:
        problem = f"{name}: {more / 1e6:.0f} MB for {len(data)} bytes"
    return f"{name}: {outcome}", problem


# ---------------------------------------------------------------- the readers and their inputs


def _targets(folder: Path) -> dict[str, Target]:
    tiny.make_data(folder)
    own = b"".join(format.encode(_state()).buffers)
    sealer = mutation.Sealed(own)
    config = freeze(tiny.compose(tiny.WORDS))
    scratch = folder / "input"
    corpora = {name: path.read_bytes() for name, path in _foreign_files(folder).items()}

    def bytes_of(corpus: bytes) -> Callable[[random.Random], bytes]:
        return lambda dice: mutation.bytes_like(corpus, dice, [own, *corpora.values()])

    def json_of(value: Any) -> Callable[[random.Random], bytes]:
        return lambda dice: json.dumps(mutation.json_like(value, dice)).encode()

    def on_file(read: Callable[[Path], object]) -> Callable[[bytes], None]:
        def reads(data: bytes) -> None:
            scratch_write(scratch, data)
            read(scratch)

        return reads

    hf = folder / "hf"
    overrides = [*tiny.WORDS, "name=x", "experiment=quick"]
    return {
        "checkpoint": Target(bytes_of(own), lambda data: _read_checkpoint(data, own), 12),
        "sealed checkpoint": Target(sealer.make, _read_sealed, 6),
        "sealed, as a resume": Target(sealer.make, _resume_sealed, 0.5),
        "sealed, by the tools": Target(sealer.make, _Tools(folder / "outputs" / "run"), 0.5),
        "frozen config": Target(json_of(config), _read_config, 0.5),
        "overrides": Target(json_of(overrides), _read_overrides, 0.5),
        "metrics.jsonl": Target(bytes_of(corpora["metrics"]), on_file(metrics_file.read), 3),
        "W&B offline file": Target(bytes_of(corpora["wandb"]), on_file(_read_wandb), 3),
        "run.lock": Target(bytes_of(corpora["lock"]), _Lock(folder / "locked"), 0.1),  # it waits
        "nanoGPT's ckpt.pt": Target(bytes_of(corpora["nanogpt"]), on_file(load_pretrained), 1.5),
        "config.json": Target(bytes_of(corpora["config"]), _Folder(hf, "config.json"), 1.5),
        "model.safetensors": Target(
            bytes_of(corpora["safetensors"]), _Folder(hf, "model.safetensors"), 1
        ),
        "token file": Target(bytes_of(corpora["tokens"]), on_file(_read_tokens), 3),
        "text file": Target(bytes_of(corpora["text"]), on_file(lambda p: list(read_pieces(p))), 2),
    }


def scratch_write(path: Path, data: bytes) -> None:
    """Write an input, which the audit hook must not attribute to a reader."""
    global _armed  # noqa: PLW0603
    armed, _armed = _armed, None
    path.write_bytes(data)
    _armed = armed


def _state() -> dict[str, Any]:
    """Return a small state with everything that a real state has."""
    weight = torch.arange(32, dtype=torch.float32).reshape(4, 8)
    config = freeze(tiny.compose(tiny.WORDS))
    return {
        **{"format": format.FORMAT, "step": 8, "epoch": 0, "tokens_seen": 512},
        **{"train_loss": 2.5, "val_loss": 2.6, "best_val_loss": 2.6, "best_step": 8},
        **{"reason": "regular", "saved_at": "2025-11-06T12:00:00.000+00:00"},
        "run": {"id": "1a2b3c4d", "name": "gpt2", "parent": {"id": "x", "step": 3, "file": "y"}},
        "config": config,
        "overrides": tiny.WORDS,
        "data": {"digest": "0" * 32, "position": 32, "evaluated_step": 8, "blocks_per_epoch": 37},
        "schedule": {"total_steps": 24, "scale": 0.5},
        **{"environment": {"threads": 1}, "versions": {"torch": "2"}, "scaler": {}},
        "model": {"transformer.wte.weight": weight, "lm_head.weight": weight},
        "optimizer": {"state": {"a": {"step": torch.tensor(8.0)}}, "groups": [{"params": ["a"]}]},
        "rng": {"torch": torch.arange(16, dtype=torch.uint8), "python": [3, [1, 2, 3], None]},
    }


def _foreign_files(folder: Path) -> dict[str, Path]:
    """Return a small valid file for every other reader."""
    files = {name: folder / f"corpus_{name}" for name in ("metrics", "lock", "nanogpt", "tokens")}
    files |= {name: folder / f"corpus_{name}" for name in ("wandb", "text")}
    events = [{"step": s, "time": 1.5, "train_loss": 2.5, "val_loss": "NaN"} for s in range(8)]
    files["metrics"].write_text("".join(json.dumps(event) + "\n" for event in events))
    files["lock"].write_text(json.dumps({"pid": 1, "host": "here", "started": "now"}))
    files["text"].write_bytes("\ufeffSome text, ünïcode too.\n".encode() * 20)
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, 300
    files["tokens"].write_bytes(header.tobytes() + bytes(600))
    files["wandb"].write_bytes(_wandb_log())
    config = ModelConfig(n_layer=1, n_head=2, n_embd=8, block_size=4, vocab_size=16, gelu="exact")
    weights = GPT2(config).state_dict()
    keys = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias")
    arguments = {key: getattr(config, key) for key in keys}
    torch.save({"model": weights, "model_args": arguments}, files["nanogpt"])
    save_huggingface(folder / "hf", weights, config)
    files |= {"config": folder / "hf/config.json", "safetensors": folder / "hf/model.safetensors"}
    return files


def _wandb_log() -> bytes:
    """Return complete, split and padded chunks in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    log = bytearray(b":W&B\x00\x00\x00"[:7])
    for step in range(6):
        record = vars(wandb_internal_pb2)["Record"]()
        record.history.step.num = step
        data = record.SerializeToString()
        half = len(data) // 2
        parts = [(1, data)] if step % 2 else [(2, data[:half]), (3, b""), (4, data[half:])]
        for kind, part in parts:
            log += (
                (0).to_bytes(4, "little") + len(part).to_bytes(2, "little") + bytes([kind]) + part
            )
    return bytes(log)


def _read_checkpoint(data: bytes, own: bytes) -> None:
    refused = 0
    with contextlib.suppress(CheckpointError):
        format.read_meta(io.BytesIO(data))
    for read in (format.read_index, format.verify, format.load):
        try:
            read(io.BytesIO(data))
        except CheckpointError:
            refused += 1
    if data != own and refused < 2:
        raise AssertionError("changed bytes were read without a word")
    if refused:
        raise CheckpointError("refused")


def _read_sealed(data: bytes) -> None:
    state = CheckpointState.from_dict(format.load(io.BytesIO(data)))
    format.verify(io.BytesIO(data))
    state.require_resumable("latest.pt")


def _resume_sealed(data: bytes) -> None:
    state = CheckpointState.from_dict(format.load(io.BytesIO(data)))
    state.require_resumable("latest.pt")
    _read_overrides(json.dumps(state.overrides).encode())
    check_config(build_typed("train", state.config))


def _read_config(data: bytes) -> None:
    values = json.loads(data)
    if isinstance(values, dict) and not format.nests_beyond(values, format.MOST_LEVELS):
        check_config(build_typed("train", values))


def _read_overrides(data: bytes) -> None:
    overrides = json.loads(data)
    if isinstance(overrides, list) and all(isinstance(word, str) for word in overrides):
        safe_overrides(task_overrides(overrides), {"name": "gpt2"})


def _read_wandb(path: Path) -> None:
    set(wandb_offline._steps(path))


def _read_tokens(path: Path) -> None:
    stream = TokenStream([Piece(path.name, open_token_file(path, 50257))], 50257)
    stream.read(0, len(stream))


class _Tools:
    """Run the subcommands that read a run on a folder in which every role is the input."""

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / "checkpoints"
        self.folder.mkdir(parents=True)

    def __call__(self, data: bytes) -> None:
        names = ("latest.pt", "best_model.pt", "rolling_step_000008.pt", "epoch_00000.pt")
        for name in names:
            scratch_write(self.folder / name, data)
        latest, root = str(self.folder / "latest.pt"), str(self.run)
        refusals = 0
        for arguments in (
            *(["list", root], ["list", root, "--json"], ["log", root], ["verify", root]),
            *(["show", latest], ["show", latest, "--json"], ["resume-command", latest]),
            *(["diff", latest, root], ["prune", root, "--keep-rolling", "0"]),
        ):
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
                try:
                    call(SUBCOMMANDS, arguments)
                except UserError:
                    refusals += 1
            if not out.getvalue().replace("\n", "").isprintable():
                raise AssertionError(
                    f"control characters for the terminal in {arguments}: {out.getvalue()!r}"[:300]
                )
        if refusals:
            raise CheckpointError("refused")


class _Lock:
    """Read the lock file of a running run for the message that refuses a second process."""

    def __init__(self, run: Path) -> None:
        run.mkdir()
        self.run = run  # held by hand: a RunLock watches its label, and ends a process that lost it
        self.descriptor = os.open(run, os.O_RDONLY)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def __call__(self, data: bytes) -> None:
        scratch_write(self.run / "run.lock", data)
        with contextlib.suppress(OSError):
            RunLock(self.run)
        raise InputError("refused")


class _Folder:
    """Read a Hugging Face folder with the input as one of its files."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.whole = (folder / name).read_bytes()

    def __call__(self, data: bytes) -> None:
        scratch_write(self.folder / self.name, data)
        try:
            load_pretrained(self.folder)
        finally:
            scratch_write(self.folder / self.name, self.whole)
