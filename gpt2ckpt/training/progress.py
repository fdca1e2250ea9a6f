"""A progress bar on a terminal; without a terminal, nothing is drawn.

tqdm.contrib.logging is not used, because it ignores the levels of handlers and disabled logging.
"""

import contextlib
import io
import logging
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from gpt2ckpt.console import is_terminal
from gpt2ckpt.worker import Worker

DRAW_EVERY = 0.1  # least seconds between two drawings
LONG = 1.0  # seconds after which the micro-batches of a step are shown


class Progress:
    """The progress of a training loop. This base class draws nothing."""

    def update(self, step: int) -> None:
        """Show that `step` optimizer steps are done."""

    def note(self, activity: str) -> None:
        """Show `activity`, such as an evaluation, until the next step is done."""

    def part(self, number: int, count: int) -> None:
        """Show that micro-batch `number` of `count` in a step starts."""

    def close(self) -> None:
        """Remove the bar."""


class BarProgress(Progress):
    """A bar on stderr until `close`. Log lines on the same terminal appear above the bar.

    A thread draws the bar and writes these lines, so a terminal that hangs does not block training.
    After an error, the bar is no longer drawn.

    Args:
        total_steps: Steps of the run.
        done_steps: Steps done before this process.
    """

    def __init__(self, total_steps: int, done_steps: int) -> None:
        self._bar: Any = None
        self._worker = Worker("progress-bar", limit=1000)
        self._worker.submit(lambda: self._open(total_steps, done_steps))
        self._step, self._activity = done_steps, ""
        self._drawn = self._since = time.monotonic()
        self._log_lines = contextlib.ExitStack()
        for handler in _terminal_handlers():
            self._log_lines.enter_context(self._above(handler))

    def update(self, step: int) -> None:
        self._step, self._activity, self._since = step, "", time.monotonic()
        self._draw_soon()

    def note(self, activity: str) -> None:
        self._activity = activity
        self._draw_soon(at_once=True)

    def part(self, number: int, count: int) -> None:
        """Show the micro-batch if the step takes longer than a second."""
        if count > 1 and time.monotonic() - self._since > LONG:
            self._activity = f"micro-batch {number}/{count}"
            self._draw_soon()

    def close(self) -> None:
        """Remove the bar, and let the log handlers write to their terminal again."""
        self._worker.submit(self._remove)
        self._worker.wait(LONG, silence=LONG)
        self._worker.close()
        self._log_lines.close()

    @contextlib.contextmanager
    def _above(self, handler: "logging.StreamHandler[Any]") -> Iterator[None]:
        terminal = handler.stream
        above = _AboveBar(terminal, self._worker)
        handler.setStream(above)
        try:
            yield
        finally:
            handler.setStream(terminal)
            above.write_waiting()

    def _draw_soon(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._drawn >= DRAW_EVERY:
            self._drawn = now
            self._worker.submit(self._draw)

    def _open(self, total_steps: int, done_steps: int) -> None:
        with contextlib.suppress(Exception):
            self._bar = tqdm(
                total=total_steps,
                initial=done_steps,
                file=sys.stderr,
                unit="step",
                dynamic_ncols=True,
                leave=False,  # the log lines stay, and the bar is removed
            )

    def _draw(self) -> None:
        if self._bar is None:
            return
        try:
            self._bar.set_postfix_str(self._activity, refresh=False)
            self._bar.update(self._step - self._bar.n)
            self._bar.refresh()
        except Exception:
            self._bar = None

    def _remove(self) -> None:
        with contextlib.suppress(Exception):
            self._bar.close()


def open_progress(total_steps: int, done_steps: int = 0, *, shown: bool = True) -> Progress:
    """Return a bar if stderr is a terminal and `shown` is true; else an object without a bar."""
    is_visible = shown and is_terminal(sys.stderr)
    return BarProgress(total_steps, done_steps) if is_visible else Progress()


class _AboveBar(io.TextIOBase):
    """Stands in for the terminal of a log handler, so that log lines appear above the bar.

    The bar's thread clears the bar, writes the line and draws the bar again. If the thread hangs,
    the handler writes its lines directly, after those that wait for the thread.
    """

    def __init__(self, terminal: Any, worker: Worker) -> None:
        self._terminal, self._worker = terminal, worker
        self._waiting: deque[str] = deque()

    def write(self, text: str) -> int:
        self._waiting.append(text)
        if self._worker.silence > LONG or not self._worker.submit(self._write_above):
            self.write_waiting()
        return len(text)

    def write_waiting(self) -> None:
        """Write the lines that wait for the bar's thread, instead of the thread."""
        with contextlib.suppress(IndexError):
            while True:
                text = self._waiting.popleft()
                with contextlib.suppress(OSError, ValueError):  # the terminal was closed
                    self._terminal.write(text)
                    self._terminal.flush()

    def _write_above(self) -> None:
        with contextlib.suppress(Exception), tqdm.external_write_mode(file=self._terminal):
            self.write_waiting()
        self.write_waiting()


def _terminal_handlers() -> list["logging.StreamHandler[Any]"]:
    """Return the handlers of the root logger and of our own that write to a terminal."""
    return [
        handler
        for name in (None, "gpt2ckpt")
        for handler in logging.getLogger(name).handlers
        if isinstance(handler, logging.StreamHandler) and is_terminal(handler.stream)
    ]
