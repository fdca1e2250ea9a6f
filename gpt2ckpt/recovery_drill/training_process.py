"""The drill's trainings: real `gpt2ckpt.train` processes, one of them killed in the act."""

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from gpt2ckpt.checkpoint.names import LATEST
from gpt2ckpt.config.compose import spelled
from gpt2ckpt.errors import ConfigError, InputError, UserError
from gpt2ckpt.loggers import metrics_file
from gpt2ckpt.runs.layout import CHECKPOINTS, HISTORY

SAVED = re.compile(r"saved (\S+) \(step (\d+), .* in ([\d.]+) s, training waited ([\d.]+) s\)")
WRITING = re.compile(r"\.(rolling_step_\d+\.pt)\..+\.tmp")
ENDING = 30  # seconds for killed processes to be gone
BRISK, CALM = 0.002, 0.05  # seconds between two looks


@dataclass(frozen=True)
class Save:
    """What a line of the log says of a save, in seconds."""

    name: str
    step: int
    durable_after: float
    waited: float


@dataclass(frozen=True)
class Training:
    """A training of the drill: its words, its directory, and on how many ranks."""

    words: list[str]
    directory: Path
    ranks: int = 1

    @property
    def log(self) -> Path:
        """What the processes of this training print."""
        return self.directory.with_suffix(".out")

    @property
    def checkpoints(self) -> Path:
        return self.directory / CHECKPOINTS

    def command(self, more: list[str]) -> list[str]:
        module = ["-m", "gpt2ckpt.train"]
        if self.ranks > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone"]
            module = [*launcher, f"--nproc_per_node={self.ranks}", *module]
        place = f"hydra.run.dir={spelled(str(self.directory))}"
        return [sys.executable, *module, *self.words, *more, place]

    def to_the_end(self, *more: str) -> float:
        """Train to the end; returns when it was started. Raises what the training complained of."""
        started = time.time()
        with self._running(more) as process:
            code = process.wait()
        if code:
            raise self._complaint(code)
        return started

    def killed_in_a_save(self, *more: str) -> str:
        """Train until one save is durable and the next is being written, and kill it there.

        Returns the name of the file that it was writing. Raises what the training complained of,
        or InputError if it came to its end before.
        """
        with self._running(more) as process:
            while (name := self._being_written()) is None:
                code = process.poll()
                if code:
                    raise self._complaint(code)
                if code == 0 or "SAVE FAILED" in self._printed():
                    raise InputError(f"no save of the training could be caught: see {self.log}")
                time.sleep(BRISK if self.checkpoints.is_dir() else CALM)
        return name

    def events(self) -> list[dict[str, Any]]:
        """The logged steps."""
        return [e for e in metrics_file.read(self.directory / HISTORY) if "train_loss" in e]

    def saves(self) -> list[Save]:
        """The saves that the log tells of, in its order."""
        found = SAVED.findall(self._printed())
        return [Save(name, int(step), float(a), float(b)) for name, step, a, b in found]

    def lines(self, *beginnings: str) -> list[str]:
        """The printed lines that begin with one of these words."""
        return [line for line in self._printed().splitlines() if line.startswith(beginnings)]

    def _being_written(self) -> str | None:
        if not (self.checkpoints / LATEST).exists():
            return None
        names = (path.name for path in self.checkpoints.iterdir())
        found = (WRITING.fullmatch(name) for name in names)
        return next((match[1] for match in found if match), None)

    def _printed(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _complaint(self, code: int) -> UserError:
        errors = self.lines("error: ")
        sentence = errors[-1].removeprefix("error: ") if errors else f"it ended with code {code}"
        if code == ConfigError.exit_code:
            return ConfigError(sentence)
        return InputError(f"a training of the drill failed: {sentence} (its output: {self.log})")

    @contextlib.contextmanager
    def _running(self, more: tuple[str, ...]) -> Iterator["subprocess.Popen[bytes]"]:
        """The launched process; with all its descendants it is killed (SIGKILL) in the end."""
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                self.command(list(more)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl+C is for the drill, which then ends it
            )
        try:
            yield process
        finally:
            _kill(process.pid)
            process.wait()


def _kill(pid: int) -> None:
    """Kill a process and its descendants: torchrun puts each rank in a session of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        launched = psutil.Process(pid)
        ranks = launched.children(recursive=True)
        for process in (launched, *ranks):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ranks, timeout=ENDING)
