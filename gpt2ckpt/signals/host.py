"""Signals during a training in a host program: one that calls `gpt2ckpt.train`.

The process and its signal handlers belong to the host. A first stopping signal saves a checkpoint
and stops the training, as in a command; then the host's own handler decides what follows.
"""

import contextlib
import re
import signal
from pathlib import Path

from gpt2ckpt.signals.early import call_previous, install
from gpt2ckpt.signals.training import TrainingSignals

CAUGHT = re.compile(r"^SigCgt:\s*([0-9a-f]+)$", re.MULTILINE)  # in /proc/self/status


class StoppedUnsaved(BaseException):
    """Raised by the handler of a signal that ends a training at once, in a host program."""

    def __init__(self, received: signal.Signals, why: str) -> None:
        super().__init__(f"{received.name}{why}")
        self.received = received


class HostSignals(TrainingSignals):
    """Signals of a training in a host program, which owns the process and its handlers.

    A first stopping signal saves and stops as in a command. Where a command would end the process
    at once, StoppedUnsaved is raised. After the training, `deliver` raises each signal again for
    the handlers of the host: Python's default for SIGINT then raises KeyboardInterrupt, and the
    default action of SIGTERM ends the process.

    Signals that the host ignores, or handles in C (faulthandler.register), are left alone.
    """

    ends_process = False

    def deliver(self) -> None:
        """Raise the stopping signals received again; call it once the training has been closed."""
        received = dict.fromkeys(number for number, _ in self._received)
        self._received = []
        with contextlib.ExitStack() as stack:  # a handler that raises does not hide the others
            for number in reversed(received):
                stack.callback(signal.raise_signal, number)

    def call_previous_handlers(self) -> None:
        """Call the host's handler for each SIGUSR1 received; the others are for `deliver`."""
        received = self._received
        stops = [number for number, _ in received if number != signal.SIGUSR1]
        self._received = [(number, None) for number in stops]  # a frame keeps the model in memory
        for number, frame in received:
            if number == signal.SIGUSR1:
                call_previous(self._before.get(number), number, frame)

    def leave(self, received: signal.Signals, why: str) -> None:
        """Stop the training where it is: raise StoppedUnsaved in the main thread."""
        raise StoppedUnsaved(received, why)

    def _install(self) -> None:
        install(self._handle, self._before, leaves=_is_left_to_host)

    def _leave_unsaved(self, received: signal.Signals) -> None:
        raise StoppedUnsaved(received, ": there was nothing to save")


def _is_left_to_host(number: int) -> bool:
    """Return whether the host ignores a signal, or handles it in C, where it cannot be restored."""
    handler = signal.getsignal(number)
    if handler is not signal.SIG_DFL:
        return handler in (signal.SIG_IGN, None)
    with contextlib.suppress(OSError):  # no /proc on this system
        if caught := CAUGHT.search(Path("/proc/self/status").read_text()):
            return bool(int(caught[1], 16) >> (number - 1) & 1)
    return False
