"""Signals while there is nothing to save: before the imports of a command, and around a training.

The handler ends the process itself. An exception would be raised in whatever line is running, and a
library's import, destructor or callback may print or swallow it. Ending the process loses nothing:
whatever is written before a training can be interrupted at any instant.

This module imports almost nothing, so that the handler is installed early.
"""

import atexit
import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import TypeAlias

from gpt2ckpt import console

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal was closed

# A signal handler, as signal.signal takes and returns it: SIG_IGN and SIG_DFL are numbers.
Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


class Interrupted(SystemExit):
    """Raised by a signal in a command that must clean up before it ends."""


class EarlySignals:
    """Handler of the stopping signals, which end the process, and of SIGUSR1.

    SIGUSR1 requests a save: the training that starts later makes it.

    Attributes:
        before: the handlers that this one replaced, by signal.
        tidies: whether the first stopping signal raises Interrupted instead, for a command that
            removes its temporary files.
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

    A signal that the parent process ignores stays ignored: SIGHUP under nohup. Outside the main
    thread, where Python cannot install handlers, none is installed. Standard streams that are
    closed or cannot encode every character are repaired, too.
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


def install(handler: Handler, before: dict[int, Handler]) -> None:
    """Install `handler` for the stopping signals and SIGUSR1; put the replaced ones in `before`.

    Raises ValueError outside the main thread.
    """
    for number in (*STOPPING, signal.SIGUSR1):
        if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue
        before[number] = signal.signal(number, handler)


def call_previous(before: Handler, number: int, frame: FrameType | None) -> None:
    """Call the handler that was replaced, unless it is a default of Python or the system."""
    if callable(before) and before is not signal.default_int_handler:
        before(number, frame)


def exit_code(number: int) -> int:
    """Return the code that a shell reports for a process ended by this signal: 130, 143, 129."""
    return 128 + int(number)


def exit_now(code: int, message: str = "") -> None:
    """End the process wherever it is, after printing `message` on stderr.

    A console whose reader has stopped is waited for two seconds at most.
    """
    with contextlib.suppress(Exception):
        console.final_message(message)
    os._exit(code)


def ignore_further_signals() -> None:
    """Ignore the stopping signals: a process that is ending keeps its exit code."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
