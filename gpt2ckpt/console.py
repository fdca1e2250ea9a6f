"""Console output that never blocks, even if its reader has stopped (a pager, Ctrl+S).

After `install`, output goes through a bounded queue to a background thread. Lines that do not fit
into the queue are dropped and counted. Only commands that train call `install`. This module is
imported before signals are handled, so it imports as little as possible.
"""

import _thread
import atexit
import codecs
import contextlib
import io
import os
import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2ckpt.worker import Worker

LIMIT = 2000  # queued writes
FULL_QUEUE_SECONDS = 0.1  # wait for space in a full queue before lines are dropped
STOPPED_SECONDS = 1.0  # without progress after which a reader counts as stopped
DRAIN_SECONDS = 5.0  # the longest wait for a slow reader when a process ends

READABLE = "gpt2ckpt.readable"  # the error handler of print_in_any_encoding
ASCII_FORMS = {"→": "->", "…": "...", "─": "-", "│": "|", "├": "|", "└": "`"}


class Outlet(io.BufferedIOBase):
    """A stream whose data a worker thread writes to stdout or stderr."""

    def __init__(self, number: int, worker: "Worker") -> None:
        self._number, self.worker = number, worker
        self.name = number  # as for a file that was opened by its descriptor
        self._dropped_lines = 0
        self._in_line = False
        self._is_gone = False
        # Reentrant, because a signal handler may print. Held for FULL_QUEUE_SECONDS at most.
        self._lock = _thread.RLock()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        """Queue `data`, or drop it and count its lines if the queue is full."""
        taken = bytes(data)
        with self._lock:
            if self.worker.backlog <= LIMIT // 2:  # one long gap instead of many short ones
                self.report_dropped_lines()
            if self._dropped_lines or not self._submit(taken):
                self._dropped_lines += taken.count(b"\n")
            else:
                self._in_line = not taken.endswith(b"\n")
        return len(taken)

    def report_dropped_lines(self) -> None:
        """Print how many lines were dropped since the last report."""
        with self._lock:
            count = self._dropped_lines
            start = "\n" if self._in_line else ""
            notice = f"{start}[{count} lines not shown: the output was not read; see train.log]\n"
            if count and self.worker.submit(lambda: self._write(notice.encode())):
                self._dropped_lines, self._in_line = 0, False

    def _submit(self, data: bytes) -> bool:
        """Queue `data`; if the queue is full, wait briefly for a slow reader."""
        if self.worker.submit(lambda: self._write(data)):
            return True
        self.worker.wait(FULL_QUEUE_SECONDS)
        return self.worker.submit(lambda: self._write(data))

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
            self._is_gone = True  # a closed terminal or pipe must not end the training


_outlets: list[Outlet] = []


def install() -> None:
    """Write stdout and stderr in a background thread until the process ends.

    Streams that were replaced before (by a notebook or a test) are not changed. If both streams
    refer to the same file, they share a thread, so that their lines keep their order.
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
        worker.submit(stream.flush)
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
    os.register_at_fork(after_in_child=lambda: _restore(replaced))  # a fork lacks the thread


def open_closed_streams() -> None:
    """Open /dev/null for each standard stream that the parent closed (`>&-`, as daemons do).

    Python sets such a stream to None, and the next file that is opened gets the descriptor of the
    stream. What a library writes to descriptor 2 would then be written to that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        nowhere = os.open(os.devnull, os.O_RDWR)  # gets the descriptor of the closed stream
        os.set_inheritable(nowhere, True)
        mode = "w" if number else "r"
        setattr(sys, name, os.fdopen(nowhere, mode, encoding="utf-8", closefd=False))


def print_in_any_encoding() -> None:
    """Make stdout and stderr print every character, whatever the console's encoding.

    Characters that the encoding lacks, and bytes of file names that are not UTF-8, are printed in
    ASCII: an arrow as `->`, others as an escape such as `\\xf6`. Otherwise print would raise
    UnicodeEncodeError, and logging would drop the line.
    """
    codecs.register_error(READABLE, _readable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != READABLE:
            stream.reconfigure(errors=READABLE)


def is_terminal(stream: Any) -> bool:
    """Return whether a stream, which a host program may have replaced, is a terminal."""
    with contextlib.suppress(AttributeError, ValueError):  # it has no isatty, or is closed
        return bool(stream.isatty())
    return False


def printable_on(stream: Any, text: str) -> str:
    """Return `text` with the characters replaced that a host program's stream cannot encode."""
    codecs.register_error(READABLE, _readable)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, READABLE).decode(encoding)


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    shown = (ASCII_FORMS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(shown), error.end


def drain(seconds: float = DRAIN_SECONDS) -> None:
    """Wait until all output is written, but at most `seconds`, and not for a stopped reader."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    for outlet in _outlets:
        if outlet.worker.wait(seconds, silence=STOPPED_SECONDS):
            outlet.report_dropped_lines()
            outlet.worker.wait(seconds, silence=STOPPED_SECONDS)


def printable(text: str) -> str:
    """Return `text` with control characters escaped, since a model may generate any character."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def print_nowait(line: str) -> None:
    """Print a line on stdout without waiting for its reader; can be used in a signal handler."""
    start = "\n" if is_terminal(sys.stdout) else ""  # below a progress bar, or below ^C

    def write() -> None:
        with contextlib.suppress(Exception):
            sys.stdout.write(f"{start}{line}\n")
            sys.stdout.flush()

    _in_thread(write)


def final_message(message: str) -> None:
    """Print a message on stderr after all earlier output; takes at most 2 * STOPPED_SECONDS."""

    def write() -> None:
        drain(STOPPED_SECONDS)
        if message:
            with contextlib.suppress(OSError):
                os.write(2, f"{message}\n".encode(errors="backslashreplace"))

    _in_thread(write, 2 * STOPPED_SECONDS)


def _in_thread(action: Callable[[], None], seconds: float = 0.0) -> None:
    """Run `action` in a thread and wait at most `seconds` for its end.

    threading.Thread cannot be used in a signal handler: it takes a lock that the interrupted code
    may hold.
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
