"""Signals while there is nothing to save: from a command's first line on, before its imports.

The process ends inside the handler. An exception would come out of whatever line was running, and
that may be a library's import, a destructor or a callback, which print it or swallow it. Nothing is
lost by it: whatever is written before a training begins can be killed at any instant. So as to
stand early, this module imports next to nothing.
"""

import atexit
import codecs
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TypeAlias

from gpt2ckpt import console

PLAIN = {"→": "->", "…": "...", "─": "-", "│": "|", "├": "|", "└": "`"}
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal was closed

# A signal's handler, as signal.signal takes and returns it: SIG_IGN and SIG_DFL are numbers.
Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None


class Interrupted(SystemExit):
    """A stop that was asked for by a signal, where things are to be tidied up first."""


class EarlySignals:
    """The handler of all stopping signals and of SIGUSR1, which it keeps for a training to come.

    With `tidies` a stop is raised as Interrupted, for commands that clean up behind themselves;
    the second one still ends the process.
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
        """Whether SIGUSR1 came since the last call."""
        asked, self._save = self._save, False
        return asked


def handle_signals_early() -> EarlySignals:
    """Install the handler for the rest of the process, once; a later call gives the same one.

    What was ignored from the start stays so: SIGHUP under nohup. Outside the main thread, where no
    handler can be installed, nothing is changed.
    """
    open_closed_streams()
    print_in_any_encoding()
    present = signal.getsignal(signal.SIGTERM)
    if isinstance(present, EarlySignals):
        return present
    handler = EarlySignals()
    with contextlib.suppress(ValueError):
        install(handler, handler.before)
        atexit.register(ignore_further_signals)
    return handler


def open_closed_streams() -> None:
    """Lead the standard streams that were closed from the start (`>&-`, a daemon's) to nowhere.

    Python has None for such a stream, and the next file that is opened gets its number: what a
    library writes to number 2 would then be written into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest free number: the closed one's
        os.set_inheritable(nowhere, True)
        mode = "w" if number else "r"
        setattr(sys, name, os.fdopen(nowhere, mode, encoding="utf-8", closefd=False))


def print_in_any_encoding() -> None:
    """Let stdout and stderr print every character, whatever encoding the console has.

    An arrow that the encoding lacks becomes `->`, any other such character its escape (`\\xf6`). A
    file name that is not UTF-8 can be printed, too. Without this a print raises UnicodeEncodeError,
    and a line of the log vanishes.
    """
    codecs.register_error("gpt2ckpt.readable", _readable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "gpt2ckpt.readable":
            stream.reconfigure(errors="gpt2ckpt.readable")


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace what the encoding cannot hold; an error handler of Python's codecs."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    shown = "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return shown, error.end


def install(handler: Handler, before: dict[int, Handler]) -> None:
    """Set `handler` for the stopping signals and SIGUSR1; what was there goes into `before`.

    Raises ValueError outside the main thread.
    """
    for number in (*STOPPING, signal.SIGUSR1):
        if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue
        before[number] = signal.signal(number, handler)


def call_previous(before: Handler, number: int, frame: FrameType | None) -> None:
    """Call the handler that was there before ours, if it was somebody's own."""
    if callable(before) and before is not signal.default_int_handler:
        before(number, frame)


def exit_code(number: int) -> int:
    """What a shell reports for a process that this signal ended: 130, 143, 129."""
    return 128 + int(number)


def exit_now(code: int, sentence: str = "") -> None:
    """End the process in the middle of whatever it does; `sentence` goes to stderr.

    It waits for nobody: a console whose reader has stopped gets a moment.
    """
    with contextlib.suppress(Exception):
        console.final_message(sentence)
    os._exit(code)


def ignore_further_signals() -> None:
    """A process that is ending ends with the code that it has, whatever it is sent meanwhile."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
