"""Log and record saves: which succeeded, which failed, and what the user can do about a failure."""

import errno
import logging
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from gpt2ckpt.checkpoint.disk_forecast import DiskForecast, prune_command
from gpt2ckpt.checkpoint.event_sink import EventSink
from gpt2ckpt.checkpoint.names import Role, role_of
from gpt2ckpt.checkpoint.retention import COPIES, Retention, SaveRequest, most_bytes, own_names
from gpt2ckpt.files.disk_usage import DISK_FULL, disk_bytes, paths_below
from gpt2ckpt.units import human_bytes

log = logging.getLogger(__name__)
REPORT_EVERY = 10  # saves


@dataclass(frozen=True)
class Saved:
    """A durable, verified save.

    Attributes:
        path: The file that was written.
        size: The bytes of that file.
        seconds: The seconds until the save was durable.
        waited: The part of these seconds for which the training loop waited.
    """

    path: Path
    size: int
    seconds: float
    waited: float


class SaveReport:
    """Reports the saves into one checkpoints/ folder; `saves` counts those that succeeded."""

    def __init__(self, folder: Path, retention: Retention, events: EventSink) -> None:
        self.saves = 0
        self._folder, self._retention, self._events = folder, retention, events
        self._disk_report = DiskForecast(folder, events)
        self._started = time.monotonic()

    def record(self, saved: Saved, request: SaveRequest, reason: str) -> None:
        """Record a save durably as an event, before anything relies on it."""
        self._events.write(
            "checkpoint_saved",
            request.step,
            file=saved.path.name,
            roles=[Role.LATEST, *(role_of(name) for name in own_names(request))],
            reason=reason,
            bytes=saved.size,
            seconds=saved.seconds,
            stall_seconds=saved.waited,
        )
        self._events.sync()

    def log(self, saved: Saved, step: int) -> None:
        """Log a save, and report the free disk space every REPORT_EVERY saves."""
        self.saves += 1
        log.info(
            "saved %s (step %d, %s in %.2f s, training waited %.2f s)",
            saved.path.name,
            step,
            human_bytes(saved.size),
            saved.seconds,
            saved.waited,
        )
        if self.saves % REPORT_EVERY == 0:
            self._disk_report.start(
                step=step,
                bytes_per_save=COPIES * saved.size,
                seconds_per_save=(time.monotonic() - self._started) / self.saves,
                most_bytes=most_bytes(self._retention, saved.size),
            )

    def failed(self, step: int, error: Exception) -> None:
        """Log and record a save that failed."""
        self._events.write("checkpoint_failed", step, error=reason_of(error))
        log.warning(
            "SAVE FAILED at step %d: %s. Every older checkpoint is kept, training continues, and "
            "the next save tries again. %s.",
            step,
            reason_of(error),
            advice_for(error, self._folder),
        )

    def stopped_waiting(self, step: int | None, error: Exception) -> None:
        """Log and record that the last save hangs; `step` is None if no save has started."""
        log.error("stopped waiting for the last save: %s", reason_of(error))
        if step is not None:
            self._events.write("checkpoint_failed", step, error=reason_of(error))

    def close(self) -> None:
        """Wait a moment for a running report of the free disk space."""
        self._disk_report.wait()


def hang(seconds: float) -> OSError:
    """Return the error of a save on a disk that makes no progress."""
    return OSError(errno.ETIMEDOUT, f"a save hangs, the disk has taken nothing for {seconds:.0f} s")


def reason_of(error: Exception) -> str:
    """Return an error as text, with the file that it names and without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def advice_for(error: Exception, folder: Path) -> str:
    """Return what a user can do about a save into `folder` that failed."""
    number = error.errno if isinstance(error, OSError) else None
    if number in DISK_FULL:
        used = human_bytes(disk_bytes(paths_below(folder)))
        return (
            f"Free space, of which the run takes {used}: {prune_command(folder)} lists what can be "
            "deleted"
        )
    if number == errno.ENOENT and not os.path.lexists(folder):
        path = shlex.quote(str(folder))
        return f"The folder was removed and is not created again: mkdir -p {path} for the next save"
    if number == errno.EBUSY:
        return (
            "Nothing is written there: stop this process, and resume from the directory of its run"
        )
    if number == errno.EROFS:
        return f"{folder} has become read-only: see dmesg for the reason, and mount it writable"
    if number in (errno.EPERM, errno.EACCES):
        return f"{folder} is not writable for this user: see ls -ld and lsattr -d for the reason"
    return f"See dmesg for errors of the disk under {folder}"
