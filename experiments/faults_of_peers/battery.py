"""The faults, one function each; results are determined from the files on disk."""

import contextlib
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from experiments.faults_of_peers import common
from experiments.faults_of_peers.peers import Peer

PATIENCE = 300  # seconds
KILLS, FLIPS = 3, 4
STOPPED_AT = 42  # the step after which the run that is damaged was killed
OTHER_LR = 5e-3
SPACE = 24 << 20  # bytes of the small disk


@dataclass
class Process:
    """A trainer in a forked child of this process, which has imported its libraries."""

    pid: int
    output: Path
    code: int | None = field(default=None)

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self) -> int:
        end = time.monotonic() + PATIENCE
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.01)
        return code

    def text(self) -> str:
        return self.output.read_text(errors="replace")


class Battery:
    """All faults for one trainer, in its own folder."""

    def __init__(self, peer: Peer, folder: Path, seed: int) -> None:
        self.peer, self.folder, self.dice = peer, folder, random.Random(seed)
        folder.mkdir(parents=True)
        common.make_tokens(folder / "tokens.bin")

    def run(self) -> dict[str, str]:
        """Return the result of each fault as text."""
        reference = self.folder / "reference"
        if self.start(reference).wait():
            raise RuntimeError(f"{self.peer.name} does not train:\n{self.text(reference)}")
        self.weights = self.peer.final(reference)
        self.base = self.stopped("base", signal.SIGKILL, STOPPED_AT)
        faults: dict[str, Callable[[], str]] = {
            f"{KILLS} random kills, resumed each time": self.kills,
            f"a flipped bit in the newest file, {FLIPS} times": self.flips,
            "newest file cut in half": self.truncation,
            "disk fills up, later there is space": self.full_disk,
            "second run in the same directory": self.second_run,
            "SIGTERM": self.sigterm,
            "a pickle that runs code, in the newest file": self.hostile,
            "another learning rate at the resume": self.learning_rate,
        }
        found = {}
        for name, fault in faults.items():
            try:
                found[name] = fault()
            except Exception as error:
                found[name] = f"the study failed: {type(error).__name__}: {error}"
            print(f"{self.peer.name}: {name}: {found[name]}", flush=True)
        return found

    # ------------------------------------------------------------ starting and stopping

    def start(self, directory: Path, *args: str) -> Process:
        """Start the trainer in `directory` with more arguments."""
        output = self.folder / f"{directory.name}.out"
        pid = os.fork()
        if pid:
            return Process(pid, output)
        code = 70
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.chdir(self.folder)
            sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
            sys.argv = [self.peer.module, str(directory), *args]
            self.peer.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)  # in any case: a child must never run on in here

    def steps(self, directory: Path) -> int:
        return max((step for step, _ in self.peer.losses(directory)), default=0)

    def stopped(self, name: str, number: int, step: int, *args: str) -> Path:
        """Return a run that got a signal after `step`."""
        directory = self.folder / name
        process = self.start(directory, *args)
        while process.poll() is None and self.steps(directory) < step:
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
        if process.wait() != -number:
            raise RuntimeError("it ended before the signal came: the machine is too busy")
        return directory

    def copy(self, name: str) -> Path:
        return Path(shutil.copytree(self.base, self.folder / name))

    def text(self, directory: Path) -> str:
        return (self.folder / f"{directory.name}.out").read_text(errors="replace")

    def resume(self, directory: Path, *args: str) -> int:
        return self.start(directory, "--resume", *args).wait()

    def off(self, directory: Path) -> str:
        """Return the largest difference of the final weights from the undisturbed run."""
        other = self.peer.final(directory)
        worst = max(float((self.weights[k] - other[k]).abs().max()) for k in self.weights)
        return (
            "bitwise equal at the end" if worst == 0 else f"weights off by {worst:.2g} at the end"
        )

    # ------------------------------------------------------------ the faults

    def kills(self) -> str:
        directory, failed = self.folder / "killed", 0
        for number in range(KILLS):
            args = ["--resume"] if number else []
            step = self.steps(directory) + self.dice.randint(6, 16)
            process = self.start(directory, *args)
            while process.poll() is None and self.steps(directory) < step:
                time.sleep(0.002)
            time.sleep(self.dice.random() * 0.02)
            failed += process.poll() not in (None, 0)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.wait()
        failed += self.resume(directory) != 0
        if failed:
            return f"{failed} restarts failed"
        logged = [step for step, _ in self.peer.losses(directory)]
        twice = len(logged) - len(set(logged))
        return f"0 restarts failed; {self.off(directory)}; {twice} steps logged twice"

    def flips(self) -> str:
        outcomes: dict[str, int] = {}
        for number in range(FLIPS):
            directory = self.copy(f"flip_{number}")
            path = self.dice.choice(self.peer.newest(directory))
            data = bytearray(path.read_bytes())
            position = self.dice.randrange(len(data) // 4, 3 * len(data) // 4)  # among the tensors
            data[position] ^= 1 << self.dice.randrange(8)
            path.write_bytes(data)
            code = self.resume(directory)
            outcome = "refused" if code else "trained on silently"
            if code == 0 and "skipped" in self.text(directory):
                outcome = f"noticed, an intact file taken, {self.off(directory)}"
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        return "; ".join(f"{count} of {FLIPS} {what}" for what, count in outcomes.items())

    def truncation(self) -> str:
        directory = self.copy("cut")
        path = self.peer.newest(directory)[0]
        os.truncate(path, path.stat().st_size // 2)
        code = self.resume(directory)
        if code:
            return f"refused (exit {code}); it looks at no older one"
        return f"noticed, an intact file taken, {self.off(directory)}"

    def full_disk(self) -> str:
        with _small_disk(self.folder / "disk") as disk:
            shutil.copy(self.folder / "tokens.bin", disk / "tokens.bin")
            directory = disk / "run"
            process = self.start(directory)
            while process.poll() is None and self.steps(directory) < 12:
                time.sleep(0.002)
            with (disk / "filler").open("wb") as file:
                while process.poll() is None:  # others take what comes free, too
                    with contextlib.suppress(OSError):
                        free = shutil.disk_usage(disk).free
                        os.posix_fallocate(file.fileno(), file.seek(0, 2), max(free, 1))
                    time.sleep(0.0005)
            code = process.wait()
            ended = "training went on to the end" if code == 0 else f"crashed (exit {code})"
            (disk / "filler").unlink()
            again = self.resume(directory)
            if again:
                return f"{ended}; with space again the resume failed"
            kept = self.off(directory)
            return f"{ended}; with space again the resume works, {kept}"

    def second_run(self) -> str:
        directory = self.copy("second")
        before = _contents(directory)
        code = self.start(directory).wait()
        after = _contents(directory)
        left = sum(after.get(name) == content for name, content in before.items())
        return f"exit {code}; {left} of {len(before)} checkpoint files of the first run are left"

    def sigterm(self) -> str:
        directory = self.folder / "terminated"
        process = self.start(directory, "--pause", "0.1")  # HF Trainer waits for 3 s first
        while process.poll() is None and self.steps(directory) < 12:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGTERM)
        code, done = process.wait(), self.steps(directory)
        saved = self.peer.saved_step(directory)
        return f"exit {code}; {done} steps done, step {saved} saved"

    def hostile(self) -> str:
        directory, crater = self.copy("hostile"), self.folder / "crater"
        for path in self.peer.newest(directory):
            if path.suffix == ".safetensors":
                continue  # holds no pickle
            torch.save({"model": _Bomb(crater), "optimizer": {}}, path, pickle_module=pickle)
        code = self.resume(directory)
        ran = "THE CODE RAN" if crater.exists() else "no code ran"
        went_on = "refused" if code else "went on from an intact file"
        return f"{ran}; {went_on} (exit {code})"

    def learning_rate(self) -> str:
        directory = self.copy("rate")
        code = self.resume(directory, "--lr", str(OTHER_LR))
        if code:
            return f"refused (exit {code})"
        used = self.peer.rate(directory)
        note = " and reported" if "0.005" in self.text(directory) else ""
        return f"applied{note}" if used == OTHER_LR else f"ignored silently: it used {used:g}"


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _contents(directory: Path) -> dict[str, bytes]:
    suffixes = (".pt", ".ckpt", ".safetensors")
    found = (path for path in directory.rglob("*") if path.suffix in suffixes)
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in found
        if path.is_file() and path.name != "final.pt"
    }


@contextlib.contextmanager
def _small_disk(mount: Path) -> Iterator[Path]:
    mount.mkdir()
    args = ["mount", "-t", "tmpfs", "-o", f"size={SPACE}", "tmpfs", str(mount)]
    subprocess.run(args, check=True, capture_output=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)
