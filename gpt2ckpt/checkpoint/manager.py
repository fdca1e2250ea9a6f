"""What the trainer talks to: saves that never end a training, and a tally of what they cost."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2ckpt.checkpoint import durable, format, space
from gpt2ckpt.checkpoint.policy import Event, Retention, copies
from gpt2ckpt.checkpoint.snapshot import Staging, on_host
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.checkpoint.writer import Writer
from gpt2ckpt.errors import CheckpointError

log = logging.getLogger(__name__)
REPORT_EVERY = 10  # saves


@dataclass(frozen=True)
class Saved:
    """A durable, verified save: its file and bytes, the seconds until it was durable, and those
    that the training waited."""

    path: Path
    size: int
    seconds: float
    waited: float


class CheckpointManager:
    """Saves states into one folder under a retention policy.

    With `in_background` the caller waits for a copy in memory only; one save is written at a time,
    and a save that comes sooner waits for it, so that none is ever dropped.
    """

    def __init__(
        self,
        folder: Path,
        retention: Retention,
        resumed_from: Path | None,
        *,
        in_background: bool = False,
    ) -> None:
        self._store = Store(folder)
        self._retention = retention
        in_folder = resumed_from is not None and resumed_from.resolve().parent == folder.resolve()
        self._pinned = frozenset({resumed_from.name} if resumed_from and in_folder else ())
        self._staging = Staging() if in_background else None
        self._writer = Writer()
        self._begun = time.monotonic()
        self.saves = 0
        self.failed_step: int | None = None  # of the newest save, if it failed
        self.lost_best = False  # a save of the best model failed: the best on disk is an older one
        durable.make_directory(folder)
        for path in durable.clean_temporaries(folder):
            log.info("removed %s, left by a process that died", path.name)

    def save(self, state: dict[str, Any], event: Event) -> Saved | None:
        """Save `state`. A save that fails is a warning, and every older file is kept.

        Returns what is durable by now: an emergency save always, others in the background later.
        """
        start = time.perf_counter()
        self._writer.wait()
        snapshot = None
        if self._staging is not None and not event.emergency:
            try:
                snapshot = self._staging.take(state)
            except (MemoryError, RuntimeError) as error:  # PyTorch's word for no memory
                log.warning("no memory for a copy of the state, the training waits: %s", error)
                self._staging = None
        if snapshot is None:
            return self._write(on_host(state), event, start)
        waited = time.perf_counter() - start
        self._writer.start(lambda: self._write(snapshot, event, start, waited))
        return None

    def wait(self) -> None:
        """Wait for the save that is being written."""
        self._writer.wait()

    def close(self) -> None:
        """Wait for the last save, and end."""
        self._writer.close()

    def _write(
        self, state: dict[str, Any], event: Event, start: float, waited: float | None = None
    ) -> Saved | None:
        try:
            encoded = format.encode(state)
            self._check_space(copies(event) * encoded.size)
            path = self._store.put(encoded, event, self._retention, self._pinned)
        except (OSError, CheckpointError) as error:
            log.warning(
                "SAVE FAILED at step %d: %s. Every older checkpoint is kept, and the next save "
                "tries again; free space in or repair %s.",
                *(event.step, error, self._store.folder),
            )
            self.lost_best = self.lost_best or event.best
            self.failed_step = event.step
            return None
        self.failed_step = None
        seconds = time.perf_counter() - start
        saved = Saved(path, encoded.size, seconds, seconds if waited is None else waited)
        self.saves += 1
        log.info(
            "saved %s (step %d, %.1f MB in %.2f s, training waited %.2f s)",
            *(path.name, event.step, saved.size / 1e6, saved.seconds, saved.waited),
        )
        if self.saves % REPORT_EVERY == 0:
            self._report_space(copies(event) * encoded.size)
        return saved

    def _report_space(self, bytes_per_save: int) -> None:
        now = space.measure(self._store.folder.parent)
        pace = (time.monotonic() - self._begun) / self.saves
        sentence, is_scarce = space.outlook(now, bytes_per_save, pace)
        log.log(logging.WARNING if is_scarce else logging.INFO, "disk: %s", sentence)

    def _check_space(self, needed: int) -> None:
        free = space.measure_free(self._store.folder)
        if free < needed:
            raise OSError(f"it needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free")
