"""Signals in a sweep whose jobs train in worker processes: the jobs save and stop, no other starts.

During a training the handlers of signals/training.py are installed; before and after it, these.
A terminal sends SIGINT and SIGTERM to the workers, too, as members of its process group. A `kill`
reaches the main process only. So the main process relays each stop as SIGUSR2, which a worker that
has already received the stop ignores: the same signal twice would end the worker without a save.

A sweep with jobs in the main process needs signals/early.py only.
"""

import functools
import signal
from collections.abc import Callable
from types import FrameType

import psutil

from gpt2ckpt.console import print_in_any_encoding
from gpt2ckpt.signals.early import EarlySignals, Interrupted, exit_code, exit_now, install
from gpt2ckpt.signals.training import TrainingSignals

RELAYED = signal.SIGUSR2


class WorkerSignals(EarlySignals):
    """Handler of a worker: a stop ends the job that is about to train, and later ones do not start.

    Attributes:
        received: the stopping signal, if one was received.
        in_job: whether the worker runs a job.
    """

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
        """Handle SIGUSR2: stop, unless the worker has received the stop itself."""
        training = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        is_known = self.received is not None
        if isinstance(training, TrainingSignals):
            is_known = training.stop_requested
        if not is_known:
            signal.raise_signal(signal.SIGTERM)


class LauncherSignals(EarlySignals):
    """Handler of the main process, which waits for its workers; a second signal kills them all."""

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
    """Install this worker's handler at the first call, and return it."""
    print_in_any_encoding()
    handler = WorkerSignals()
    install(handler, handler.before)
    signal.signal(RELAYED, handler.relay)
    return handler
