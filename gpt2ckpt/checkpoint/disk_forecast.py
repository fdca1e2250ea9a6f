"""Report how long the free space of a disk lasts, and warn if few saves fit."""

import logging
import shlex
import threading
from pathlib import Path

from gpt2ckpt.checkpoint.event_sink import NO_EVENTS, EventSink
from gpt2ckpt.files.disk_usage import (
    COUNT_SECONDS,
    UNKNOWN_FREE,
    DiskUsage,
    disk_bytes,
    free_space_text,
    measure_usage,
)
from gpt2ckpt.units import human_bytes, human_duration

FEW_SAVES = 10

log = logging.getLogger(__name__)


class DiskForecast:
    """Logs how long the disk of a checkpoints/ folder lasts, from a thread of its own.

    A run directory can hold many files, or be on a disk that hangs. So neither a save nor the
    training waits for a report, and no report starts before the last one has ended. The warning
    that few saves fit is logged once, and again only after more saves have fit in the meantime.
    """

    def __init__(self, folder: Path, events: EventSink = NO_EVENTS) -> None:
        self._folder, self._events = folder, events
        self._thread: threading.Thread | None = None
        self._is_scarce = False

    def start(
        self,
        step: int,
        bytes_per_save: int,
        seconds_per_save: float,
        most_bytes: int | None = None,
    ) -> None:
        """Start a report after the save of `step`.

        Args:
            step: The step of the save.
            bytes_per_save: The bytes that each save takes.
            seconds_per_save: The time from one save to the next.
            most_bytes: The most bytes that all checkpoints can take; None without a bound.
        """
        if self._thread is None or not self._thread.is_alive():
            arguments = (step, bytes_per_save, seconds_per_save, most_bytes)
            self._thread = threading.Thread(target=self._log, args=arguments, daemon=True)
            self._thread.start()

    def wait(self, seconds: float = COUNT_SECONDS) -> None:
        """Wait at most `seconds` for a running report."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _log(
        self, step: int, bytes_per_save: int, seconds_per_save: float, most_bytes: int | None
    ) -> None:
        coming = None
        if most_bytes is not None:
            coming = most_bytes - disk_bytes(self._folder.glob("*.pt"))
        now = measure_usage(self._folder.parent)
        sentence, is_scarce = forecast(now, bytes_per_save, seconds_per_save, coming)
        if is_scarce and not self._is_scarce:
            saves = now.free // max(bytes_per_save, 1)
            self._events.write("disk_low", step, free_bytes=now.free, saves_left=saves)
            message = "warning: few saves fit on the disk: %s. %s lists what can be deleted"
            log.warning(message, sentence, prune_command(self._folder))
        else:
            log.info("disk: %s", sentence)
        self._is_scarce = is_scarce


def prune_command(folder: Path) -> str:
    """Return the command that lists which checkpoints of a folder can be deleted."""
    options = "--keep-rolling 2 --keep-epochs 2 --abandoned --corrupt"
    return f"python -m gpt2ckpt.checkpoints prune {shlex.quote(str(folder))} {options}"


def forecast(
    space: DiskUsage, bytes_per_save: int, seconds_per_save: float, coming: int | None = None
) -> tuple[str, bool]:
    """Return as text how long the disk lasts, and whether to warn about it.

    Args:
        space: The bytes used and free.
        bytes_per_save: The bytes that each save takes.
        seconds_per_save: The time from one save to the next.
        coming: The bytes that future saves take until each new file replaces an older one; None if
            that never happens.
    """
    used = f"{'' if space.is_counted else 'at least '}{human_bytes(space.used)}"
    sentence = f"the run takes {used}, {free_space_text(space.free)}"
    if space.free >= UNKNOWN_FREE:
        return sentence, False
    left = space.free // max(bytes_per_save, 1)
    sentence += f": {left:,} more saves fit"
    if coming is not None and coming <= space.free:
        return f"{sentence}, and the disk lasts, since new files replace old ones", False
    return f"{sentence}, {human_duration(left * seconds_per_save)} at this rate", left < FEW_SAVES
