"""What the trainer talks to: saves that never end a training, and a tally of what they cost."""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2ckpt.checkpoint import durable, format
from gpt2ckpt.checkpoint.policy import Event, Retention, copies
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A durable, verified save: its file, bytes, and the seconds that it took."""

    path: Path
    size: int
    seconds: float


class CheckpointManager:
    """Saves states into one folder under a retention policy."""

    def __init__(self, folder: Path, retention: Retention, resumed_from: Path | None) -> None:
        self._store = Store(folder)
        self._retention = retention
        in_folder = resumed_from is not None and resumed_from.resolve().parent == folder.resolve()
        self._pinned = frozenset({resumed_from.name} if resumed_from and in_folder else ())
        durable.make_directory(folder)
        for path in durable.clean_temporaries(folder):
            log.info("removed %s, left by a process that died", path.name)

    def save(self, state: dict[str, Any], event: Event) -> Saved | None:
        """Save `state`; None if that failed, with a warning and every older file kept."""
        start = time.perf_counter()
        try:
            encoded = format.encode(state)
            self._check_space(copies(event) * encoded.size)
            path = self._store.put(encoded, event, self._retention, self._pinned)
        except (OSError, CheckpointError) as error:
            log.warning(
                "SAVE FAILED at step %d: %s. Every older checkpoint is kept, training goes on and "
                "the next save tries again; free space in or repair %s.",
                *(event.step, error, self._store.folder),
            )
            return None
        saved = Saved(path, encoded.size, time.perf_counter() - start)
        log.info(
            "saved %s (step %d, %.1f MB in %.2f s)",
            *(path.name, event.step, saved.size / 1e6, saved.seconds),
        )
        return saved

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self._store.folder).free
        if free < needed:
            raise OSError(f"it needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free")
