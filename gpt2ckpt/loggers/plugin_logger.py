"""The logger of a plugin, which has only those methods that it needs."""

from collections.abc import Sequence
from typing import Any

from gpt2ckpt.loggers.base import MetricRecord

METHODS = ("history", "log", "text", "flush", "close")


class PluginLogger:
    """Passes events to an object that has any of METHODS.

    Args:
        target: the object.
        history: the events of the run's earlier processes, up to the step that this process starts
            at. The object gets them first, if it has `history(events)`: an empty list in a new run.
    """

    def __init__(self, target: Any, history: Sequence[MetricRecord]) -> None:
        if not any(hasattr(target, method) for method in METHODS):
            raise TypeError(f"{type(target).__name__} has none of the methods {', '.join(METHODS)}")
        self._target = target
        self._call("history", [dict(event) for event in history])

    def log(self, event: MetricRecord) -> None:
        """Pass a copy of one event, since other loggers have it, too."""
        self._call("log", dict(event))

    def text(self, step: int, text: str) -> None:
        """Pass a text sample."""
        self._call("text", step, text)

    def flush(self) -> None:
        """Flush the object."""
        self._call("flush")

    def close(self) -> None:
        """Close the object."""
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> None:
        if hasattr(self._target, method):
            getattr(self._target, method)(*arguments)
