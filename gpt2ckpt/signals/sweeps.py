"""Signals to a sweep whose jobs train in workers: those save and stop, and no other begins.

During a training its own handlers stand (signals/training.py), before and after it these.
Workers get SIGINT and SIGTERM from a terminal, as members of its process group, but not from a
`kill` of the sweep's main process: that one passes on what it receives as SIGUSR2, which a worker
that has been told already ignores. (The same signal twice would end it without a save.)

Jobs in the main process need none of this: gpt2ckpt/signals/early.py stands there.
"""

import functools
import signal
from collections.abc import Callable
from types import FrameType

import psutil

from gpt2ckpt.signals.early import (
    EarlySignals,
    Interrupted,
    exit_code,
    exit_now,
    install,
    print_in_any_encoding,
)
from gpt2ckpt.signals.training import TrainingSignals

RELAYED = signal.SIGUSR2


class WorkerSignals(EarlySignals):
    """A worker's handler: a stop ends the job that is being prepared, and keeps others from it."""

    def __init__(self) -> None:
        super().__init__()
        self.received: int | None = None
        self.in_job = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            super().__call__(number, frame)
            return
        self.received = number
        if self.in_job:
            raise Interrupted(exit_code(number))

    def relay(self, number: int, frame: FrameType | None) -> None:
        """The handler of what the main process has received."""
        training = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        told = self.received is not None
        if isinstance(training, TrainingSignals):
            told = training.stop_requested
        if not told:
            signal.raise_signal(signal.SIGTERM)


class LauncherSignals(EarlySignals):
    """The main process's handler: it waits for its workers; the second signal ends them all."""

    def __init__(self, relay_to_workers: Callable[[], None]) -> None:
        super().__init__()
        self.received: int | None = None
        self._relay_to_workers = relay_to_workers

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            return
        if self.received == number:
            for child in psutil.Process().children(recursive=True):
                child.kill()
            exit_now(exit_code(number))
        self.received = number
        self._relay_to_workers()


@functools.cache
def worker_signals() -> WorkerSignals:
    """This worker's handler, installed by the first call."""
    print_in_any_encoding()
    handler = WorkerSignals()
    install(handler, handler.before)
    signal.signal(RELAYED, handler.relay)
    return handler
