"""Handles signals before and after training, when there is nothing to save.

The handler ends the process itself. If it raised an exception instead, a library's import,
destructor or callback could print or suppress the exception. Ending the process loses nothing,
because everything that is written before training can be interrupted at any time.

This module imports almost nothing, so that the handler can be installed before other imports.
"""

import atexit
import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import TypeAlias

from gpt2ckpt import console

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # a closed terminal sends SIGHUP

# The type that signal.signal takes and returns: SIG_IGN and SIG_DFL are numbers.
Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


class Interrupted(SystemExit):
    """Raised by the signal handler in a command that must clean up before it ends."""


class EarlySignals:
    """Signal handler that ends the process on SIGINT, SIGTERM and SIGHUP, and records SIGUSR1.

    SIGUSR1 requests a save, which the training makes after it has started.

    Attributes:
        before: the handlers that this handler replaced, by signal.
        tidies: whether the first stopping signal raises Interrupted instead, so that the command
            can remove its temporary files.
    """

    def __init__(self) -> None:
        self.before: dict[int, Handler] = {}
        self.tidies = False
        self._save = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self._save = True
            return
        if self.tidies:
            self.tidies = False
            raise Interrupted(exit_code(number))
        try:
            call_previous(self.before.get(number), number, frame)
        finally:
            exit_now(exit_code(number), "interrupted: there was nothing to save")

    def take_save_request(self) -> bool:
        """Return whether SIGUSR1 was received since the last call."""
        requested, self._save = self._save, False
        return requested


def handle_signals_early() -> EarlySignals:
    """Install the early handler and return it; a later call returns the installed one.

    Under nohup, SIGHUP stays ignored. Outside the main thread, where Python cannot install
    handlers, no handler is installed. Standard streams that are closed or cannot encode every
    character are replaced.
    """
    console.open_closed_streams()
    console.print_in_any_encoding()
    present = signal.getsignal(signal.SIGTERM)
    if isinstance(present, EarlySignals):
        return present
    handler = EarlySignals()
    with contextlib.suppress(ValueError):
        install(handler, handler.before)
        atexit.register(ignore_further_signals)
    return handler


def install(
    handler: Handler,
    before: dict[int, Handler],
    leaves: Callable[[int], bool] = lambda number: (
        number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN
    ),
) -> None:
    """Install `handler` for the stopping signals and SIGUSR1; add the replaced ones to `before`.

    Signals for which `leaves` returns true are left alone; by default an ignored SIGHUP. Raises
    ValueError outside the main thread.
    """
    for number in (*STOPPING, signal.SIGUSR1):
        if not leaves(number):
            before[number] = signal.signal(number, handler)


def call_previous(before: Handler, number: int, frame: FrameType | None) -> None:
    """Call a replaced handler, unless it is the default of Python or the system."""
    if callable(before) and before is not signal.default_int_handler:
        before(number, frame)


def exit_code(number: int) -> int:
    """Return the exit code for a signal, as a shell reports it: 129, 130 or 143."""
    return 128 + int(number)


def exit_now(code: int, message: str = "") -> None:
    """Print `message` on stderr and end the process at once.

    If the reader of the console has stopped, the process ends after two seconds.
    """
    with contextlib.suppress(Exception):
        console.final_message(message)
    os._exit(code)


def ignore_further_signals() -> None:
    """Ignore the stopping signals, so that an ending process keeps its exit code."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
