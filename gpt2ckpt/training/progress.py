"""A progress bar, on a terminal only: in a pipe or a log file there is nothing of it.

tqdm.contrib.logging would forget the levels of handlers, and print where logging is turned off.
"""

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from tqdm import tqdm

from gpt2ckpt.worker import Worker

DRAW_EVERY = 0.1  # seconds between two drawings, at least
LONG = 1.0  # seconds after which the parts of a step are shown


class Progress(Protocol):
    """What the training loop tells about where it is."""

    def update(self, step: int) -> None:
        """`step` optimizer steps are done now."""

    def note(self, activity: str) -> None:
        """Something else than steps is done now: an evaluation, say."""

    def part(self, number: int, count: int) -> None:
        """Within a step, micro-batch `number` of `count` begins."""

    def close(self) -> None:
        """Remove the bar."""


class NoProgress:
    """Nowhere to draw: says nothing."""

    def update(self, step: int) -> None:
        """Nothing."""

    def note(self, activity: str) -> None:
        """Nothing."""

    def part(self, number: int, count: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class BarProgress:
    """A bar on stderr. Log lines to the same terminal appear above it, each whole.

    A thread draws it. A bar that fails to be drawn is not drawn any more.

    Args:
        total_steps: steps of the whole run.
        done_steps: steps done before, by a run that is resumed.
    """

    def __init__(self, total_steps: int, done_steps: int) -> None:
        self._bar = tqdm(
            total=total_steps,
            initial=done_steps,
            file=sys.stderr,
            unit="step",
            dynamic_ncols=True,
            leave=False,  # The plain lines remain; the bar is for the moment only.
        )
        self._worker = Worker("progress-bar", limit=1)
        self._step, self._activity = done_steps, ""
        self._drawn = self._since = time.monotonic()
        self._is_broken = False
        self._log_lines = contextlib.ExitStack()
        for handler in _terminal_handlers():
            self._log_lines.enter_context(_above_bar(handler))

    def update(self, step: int) -> None:
        """Move the bar to `step`."""
        self._step, self._activity, self._since = step, "", time.monotonic()
        self._draw_soon()

    def note(self, activity: str) -> None:
        """Show `activity` behind the bar until the next step is done."""
        self._activity = activity
        self._draw_soon(at_once=True)

    def part(self, number: int, count: int) -> None:
        """Show the micro-batches of a step that takes long."""
        if count > 1 and time.monotonic() - self._since > LONG:
            self._activity = f"micro-batch {number}/{count}"
            self._draw_soon()

    def close(self) -> None:
        """Remove the bar and give the log handlers their terminal back."""
        self._worker.hand_over(self._remove)
        self._worker.wait(LONG, silence=LONG)
        self._worker.close()
        self._log_lines.close()

    def _draw_soon(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        if at_once or now - self._drawn >= DRAW_EVERY:
            self._drawn = now
            self._worker.hand_over(self._draw)

    def _remove(self) -> None:
        with contextlib.suppress(Exception):
            self._bar.close()

    def _draw(self) -> None:
        if self._is_broken:
            return
        try:
            self._bar.set_postfix_str(self._activity, refresh=False)
            self._bar.update(self._step - self._bar.n)
            self._bar.refresh()
        except Exception:
            self._is_broken = True


def open_progress(total_steps: int, done_steps: int = 0, *, shown: bool = True) -> Progress:
    """A bar where stderr is a terminal and it is to be `shown`, else a silent stand-in."""
    if shown and sys.stderr.isatty():
        with contextlib.suppress(Exception):
            return BarProgress(total_steps, done_steps)
    return NoProgress()


class _AboveBar(io.TextIOBase):
    """A terminal for a log handler: takes the bar away, writes, draws the bar again."""

    def __init__(self, terminal: Any) -> None:
        self._terminal = terminal

    def write(self, text: str) -> int:
        with _bar_away(self._terminal):
            written: int = self._terminal.write(text)
            self._terminal.flush()
        return written

    def flush(self) -> None:
        self._terminal.flush()


def _bar_away(terminal: Any) -> AbstractContextManager[None]:
    context: AbstractContextManager[None] = tqdm.external_write_mode(file=terminal)
    return context


def _terminal_handlers() -> list["logging.StreamHandler[Any]"]:
    """The root logger's handlers that write to a terminal (a file handler's stream is none)."""
    return [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream.isatty()
    ]


@contextlib.contextmanager
def _above_bar(handler: "logging.StreamHandler[Any]") -> Iterator[None]:
    terminal = handler.stream
    handler.setStream(_AboveBar(terminal))
    try:
        yield
    finally:
        handler.setStream(terminal)
