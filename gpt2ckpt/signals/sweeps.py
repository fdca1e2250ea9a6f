"""Handles signals in a sweep whose jobs train in worker processes.

On a stopping signal, the running jobs save and stop, and no other job starts. While a job trains,
its worker uses the handlers of signals/training.py; before and after that, it uses `WorkerSignals`.

On Ctrl+C, a terminal sends SIGINT to the main process and to all workers. `kill` sends a signal to
the main process only. Therefore, the main process relays each stopping signal as SIGUSR2. A worker
that has received the stopping signal itself ignores SIGUSR2, because a repeated signal would end
the worker without a save.

In a sweep whose jobs train in the main process, signals/early.py is sufficient.
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
    """Signal handler of a worker while it does not train: ends its job, and prevents later jobs.

    Attributes:
        received: the stopping signal that was received, or None.
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
        """Handle SIGUSR2: stop, unless the worker has received a stopping signal itself."""
        training = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        is_stopping = self.received is not None
        if isinstance(training, TrainingSignals):
            is_stopping = training.stop_requested
        if not is_stopping:
            signal.raise_signal(signal.SIGTERM)


class LauncherSignals(EarlySignals):
    """Signal handler of the main process: stops the workers; a repeated signal kills them."""

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
    """Install the handler of this worker at the first call, and return it."""
    print_in_any_encoding()
    handler = WorkerSignals()
    install(handler, handler.before)
    signal.signal(RELAYED, handler.relay)
    return handler
