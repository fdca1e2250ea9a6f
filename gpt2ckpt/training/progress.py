"""A progress bar, on a terminal only: in a pipe or a log file there is nothing of it.

tqdm.contrib.logging would forget the levels of handlers, and print where logging is turned off.
"""

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from tqdm import tqdm


class Progress(Protocol):
    """What the training loop tells about where it is."""

    def update(self, step: int) -> None:
        """`step` optimizer steps are done now."""

    def close(self) -> None:
        """Remove the bar."""


class NoProgress:
    """Nowhere to draw: says nothing."""

    def update(self, step: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class BarProgress:
    """A bar on stderr. Log lines to the same terminal appear above it, each whole.

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
        self._log_lines = contextlib.ExitStack()
        for handler in _terminal_handlers():
            self._log_lines.enter_context(_above_bar(handler))

    def update(self, step: int) -> None:
        """Move the bar to `step`; tqdm draws it at most ten times a second."""
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Remove the bar and give the log handlers their terminal back."""
        self._bar.close()
        self._log_lines.close()


def open_progress(total_steps: int, done_steps: int = 0, *, shown: bool = True) -> Progress:
    """A bar where stderr is a terminal and it is to be `shown`, else a silent stand-in."""
    is_visible = shown and sys.stderr.isatty()
    return BarProgress(total_steps, done_steps) if is_visible else NoProgress()


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
