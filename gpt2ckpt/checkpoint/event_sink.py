"""The interface that records the events of a checkpoints/ folder; runs/events.py implements it."""

from typing import Any, Literal, Protocol, TypeAlias

EventName: TypeAlias = Literal[
    "run_started",
    "run_resumed",
    "checkpoint_saved",
    "checkpoint_failed",
    "checkpoint_corrupt",
    "checkpoint_repaired",
    "evaluated",
    "signal_received",
    "rolled_back",
    "batch_skipped",
    "loss_spike",
    "disk_low",
    "replay_verified",
    "run_stopped",
    "run_finished",
]
"""All names of events; docs/events.md describes the fields of each."""


class EventSink(Protocol):
    """Records events. Any thread may call the methods, and none raises an exception."""

    def write(self, event: EventName, step: int | None, **fields: Any) -> None:
        """Record an event at `step` (optimizer steps; None if unknown), which survives a kill."""

    def sync(self) -> None:
        """Wait until the recorded events are on the device, so that they survive a power loss."""


class NoEvents:
    """Records nothing, on a rank that writes no files."""

    def write(self, event: EventName, step: int | None, **fields: Any) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


NO_EVENTS = NoEvents()
