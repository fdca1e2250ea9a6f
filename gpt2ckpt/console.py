"""Output to a console whose reader may have stopped: a pager, Ctrl+S, a log driver that hangs.

A command waits for its reader as every program does. A training must not: from `install` on, what
is printed goes through a bounded queue to a thread, and lines that find it full are counted and
left out. So as to be imported before signals are handled, this module imports next to nothing.
"""

import _thread
import atexit
import contextlib
import io
import os
import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2ckpt.worker import Worker

LIMIT = 2000  # writes that wait for the reader
GLANCE = 0.1  # seconds that a full queue is waited for, before its lines are left out
MOMENT = 1.0  # seconds without progress after which a reader counts as stopped
PATIENCE = 5.0  # seconds that the end of a process waits for a slow reader, at most


class Outlet(io.BufferedIOBase):
    """The file descriptor of a standard stream, written to by `worker`."""

    def __init__(self, number: int, worker: "Worker") -> None:
        self._number, self.worker = number, worker
        self.name = number  # as that of a file that is opened by its descriptor
        self._left_out = 0  # lines
        self._in_line = False
        self._is_gone = False
        # Reentrant: a signal handler may print. It is held for a glance at most.
        self._lock = _thread.RLock()

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._number

    def isatty(self) -> bool:
        """Return whether a terminal shows what is written."""
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        """Hand `data` over; if too much waits already, count its lines and leave it out."""
        taken = bytes(data)
        with self._lock:
            if self.worker.backlog <= LIMIT // 2:  # so that each gap is one long one
                self.report_left_out()
            if self._left_out or not self._hand_over(taken):
                self._left_out += taken.count(b"\n")
            else:
                self._in_line = not taken.endswith(b"\n")
        return len(taken)

    def report_left_out(self) -> None:
        """Say how many lines were left out since the last time."""
        with self._lock:
            count = self._left_out
            start = "\n" if self._in_line else ""
            notice = (
                f"{start}[{count} lines were not shown, since nobody read: train.log has them]\n"
            )
            if count and self.worker.hand_over(lambda: self._write(notice.encode())):
                self._left_out, self._in_line = 0, False

    def _hand_over(self, data: bytes) -> bool:
        """Hand over, and wait a glance for a reader that reads, but not as fast as we print."""
        if self.worker.hand_over(lambda: self._write(data)):
            return True
        self.worker.wait(GLANCE)
        return self.worker.hand_over(lambda: self._write(data))

    def _write(self, data: bytes) -> None:
        try:
            while data and not self._is_gone:
                try:
                    written = os.write(self._number, data)
                    self._is_gone = written == 0
                    data = data[written:]
                except BlockingIOError:  # another program made the shared terminal non-blocking
                    select.select([], [self._number], [])
        except OSError:
            self._is_gone = True  # a closed terminal or pipe costs lines, never the training


_outlets: list[Outlet] = []


def install() -> None:
    """Let a thread write stdout and stderr from now on, until the process ends.

    Streams that are not the process's own (a notebook's, a test's) stay as they are. Two streams
    that lead to the same place share a thread, so that their lines keep their order.
    """
    from gpt2ckpt.worker import Worker

    if _outlets:
        return
    replaced = {}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper) or stream is not getattr(sys, f"__{name}__"):
            continue
        number = stream.fileno()
        shared = [o.worker for o in _outlets if os.path.sameopenfile(o.fileno(), number)]
        worker = shared[0] if shared else Worker(name, LIMIT)
        worker.hand_over(stream.flush)
        outlet = Outlet(number, worker)
        _outlets.append(outlet)
        replaced[name] = stream
        new = io.TextIOWrapper(
            outlet,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering or stream.write_through,
        )
        setattr(sys, name, new)
    atexit.register(drain)
    os.register_at_fork(after_in_child=lambda: _restore(replaced))  # a child lacks the thread


def drain(seconds: float = PATIENCE) -> None:
    """Wait until all output is written, as long as somebody reads it; at most `seconds`."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    for outlet in _outlets:
        if outlet.worker.wait(seconds, silence=MOMENT):
            outlet.report_left_out()
            outlet.worker.wait(seconds, silence=MOMENT)


def printable(text: str) -> str:
    """Return `text` with escapes in place of what a terminal obeys, and shows nothing of.

    A model may emit any byte: a carriage return, the code that changes colors, a NUL.
    """
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def say(sentence: str) -> None:
    """Print a line on stdout from a signal's thread; never waits for a reader."""
    start = "\n" if sys.stdout.isatty() else ""  # below a progress bar, or below ^C

    def write() -> None:
        with contextlib.suppress(Exception):
            sys.stdout.write(f"{start}{sentence}\n")
            sys.stdout.flush()

    _in_thread(write)


def final_message(sentence: str) -> None:
    """Print `sentence` on stderr after all earlier output; wait for a reader a moment only."""

    def write() -> None:
        drain(MOMENT)
        if sentence:
            with contextlib.suppress(OSError):
                os.write(2, f"{sentence}\n".encode(errors="backslashreplace"))

    _in_thread(write, 2 * MOMENT)


def _in_thread(action: Callable[[], None], seconds: float = 0.0) -> None:
    """Run `action` in a thread, and wait for it so long at most.

    threading.Thread is not used: it takes a lock that the code which a signal has interrupted may
    hold.
    """
    running = _thread.allocate_lock()
    running.acquire()

    def run() -> None:
        try:
            action()
        finally:
            running.release()

    _thread.start_new_thread(run, ())
    running.acquire(timeout=seconds)


def _restore(streams: dict[str, io.TextIOWrapper]) -> None:
    _outlets.clear()
    for name, stream in streams.items():
        setattr(sys, name, stream)
