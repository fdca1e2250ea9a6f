"""Runs `gpt2ckpt.train` for the drill, and kills it during a save."""

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

from gpt2ckpt.checkpoint.event_sink import EventName
from gpt2ckpt.checkpoint.names import LATEST
from gpt2ckpt.config.compose import spelled
from gpt2ckpt.errors import ConfigError, InputError, UserError
from gpt2ckpt.loggers import metrics_file
from gpt2ckpt.runs.events import read_events
from gpt2ckpt.runs.layout import CHECKPOINTS, HISTORY

WRITING = re.compile(r"\.(rolling_step_\d+\.pt)\..+\.tmp")
KILL_SECONDS = 30  # to wait until killed processes have ended
POLL, POLL_BEFORE_SAVES = 0.002, 0.05  # seconds


@dataclass(frozen=True)
class TrainingRun:
    """A training run of the drill: its overrides, directory and number of ranks."""

    overrides: list[str]
    directory: Path
    ranks: int = 1

    @property
    def output(self) -> Path:
        """Return the file that has the output of the processes of this run."""
        return self.directory.with_suffix(".out")

    @property
    def checkpoints(self) -> Path:
        return self.directory / CHECKPOINTS

    def train_to_end(self, *more: str) -> float:
        """Train with `more` overrides to the last step; return the time of the start.

        Raises:
            ConfigError, InputError: the error of the run, if it failed.
        """
        started = time.time()
        with self._running(more) as process:
            code = process.wait()
        if code:
            raise self._error(code)
        self._refuse_early_end()
        return started

    def kill_in_save(self, *more: str) -> str:
        """Train until one save is durable and the next is being written; then kill all processes.

        Returns:
            The name of the file that was being written.

        Raises:
            ConfigError, InputError: if the run failed, or ended before it could be killed.
        """
        with self._running(more) as process:
            while (name := self._file_being_written()) is None:
                code = process.poll()
                if code:
                    raise self._error(code)
                if code == 0:
                    self._refuse_early_end()
                if code == 0 or self.events("checkpoint_failed"):
                    raise InputError(
                        "the drill could not kill its run during a save: repeat the drill, or see "
                        f"{self.output}"
                    )
                time.sleep(POLL if self.checkpoints.is_dir() else POLL_BEFORE_SAVES)
        return name

    def logged_steps(self) -> list[dict[str, Any]]:
        """Return the line of each step in metrics.jsonl."""
        logged = metrics_file.read(self.directory / HISTORY)
        return [step for step in logged if "train_loss" in step]

    def events(self, name: EventName) -> list[dict[str, Any]]:
        """Return the events with this name."""
        return [event for event in read_events(self.directory) if event["event"] == name]

    def _refuse_early_end(self) -> None:
        """Raise InputError if a callback has ended this run, which then lacks steps to compare."""
        for ended in self.events("run_finished"):
            if name := ended.get("callback"):
                raise InputError(
                    f"callback {name!r} ended a run of the drill at step {ended['step']}: change "
                    f"its keys for the drill (callback.{name}.…) or leave it out (callback=[])"
                )

    def _file_being_written(self) -> str | None:
        if not (self.checkpoints / LATEST).exists():
            return None
        names = (path.name for path in self.checkpoints.iterdir())
        found = (WRITING.fullmatch(name) for name in names)
        return next((match[1] for match in found if match), None)

    def _error(self, code: int) -> UserError:
        """Return the error that the run printed before it ended with this exit code."""
        printed = self.output.read_text(errors="replace").splitlines()
        errors = [line for line in printed if line.startswith("error: ")]
        message = errors[-1].removeprefix("error: ") if errors else f"exit code {code}"
        if code == ConfigError.exit_code:
            return ConfigError(message)
        return InputError(f"a run of the drill failed: {message} (see its output in {self.output})")

    @contextlib.contextmanager
    def _running(self, more: tuple[str, ...]) -> Iterator["subprocess.Popen[bytes]"]:
        """Start the run, and kill (SIGKILL) all its processes at the end of the context."""
        with self.output.open("ab") as output:
            process = subprocess.Popen(
                self._command(more),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl+C signals only the drill, which kills the run
            )
        try:
            yield process
        finally:
            _kill(process.pid)
            process.wait()

    def _command(self, more: tuple[str, ...]) -> list[str]:
        module = ["-m", "gpt2ckpt.train"]
        if self.ranks > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone"]
            module = [*launcher, f"--nproc_per_node={self.ranks}", *module]
        directory = f"hydra.run.dir={spelled(str(self.directory))}"
        return [sys.executable, *module, *self.overrides, *more, directory]


def _kill(pid: int) -> None:
    """Kill a process and its descendants, since torchrun starts each rank in its own session."""
    with contextlib.suppress(psutil.NoSuchProcess):
        launched = psutil.Process(pid)
        ranks = launched.children(recursive=True)
        for process in (launched, *ranks):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ranks, timeout=KILL_SECONDS)
