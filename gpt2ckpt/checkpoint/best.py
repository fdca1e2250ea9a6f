"""The best model of a run, which only the file best_model.pt records."""

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.guard import Guard
from gpt2ckpt.checkpoint.reading import check, read_meta
from gpt2ckpt.checkpoint.repair import INDEPENDENT
from gpt2ckpt.checkpoint.retention import Link, Publish
from gpt2ckpt.checkpoint.state import CheckpointMeta
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """The best model of a run.

    Attributes:
        loss: Its validation loss in nats per token.
        step: Its step.
        evaluated_on: The digest of the blocks that the loss was measured on; None in files of
            earlier versions.
        data: The digest of all data of the run.
    """

    loss: float
    step: int
    evaluated_on: str | None = None
    data: str | None = None

    def is_on(self, evaluated_on: str, data: str) -> bool:
        """Return whether a loss that was measured on these blocks can be compared with `loss`."""
        return evaluated_on == self.evaluated_on if self.evaluated_on else data == self.data


def best_of(meta: CheckpointMeta) -> Best | None:
    """Return the loss and the step of a state; None if it has no finite validation loss."""
    loss = meta.val_loss
    if type(loss) is not float or not math.isfinite(loss) or not meta.has("step"):
        return None
    return Best(loss, meta.step, meta.data.evaluated_on, meta.data.digest or None)


class BestModel:
    """The best model in a checkpoints/ folder, for the thread that saves.

    `current` is the model in best_model.pt. It is None before `look`, and without a usable file.
    """

    def __init__(self, folder: Path, guard: Guard, *, is_saved: bool) -> None:
        self.current: Best | None = None
        self._folder, self._guard, self._is_saved = folder, guard, is_saved

    def look(self, known: CheckpointMeta | None, check_owner: Callable[[], None]) -> None:
        """Repair best_model.pt, and read `current` from it. Never raises an exception.

        If best_model.pt is missing, it is restored from a different file of the best step, which
        the state `known` records. Nothing is changed if `check_owner` raises OSError.
        """
        path = self._folder / names.BEST
        with contextlib.suppress(OSError):
            check_owner()
            self._guard.ensure_valid(path)
            if self._is_saved and known is not None and not path.exists():
                self._restore(known)
        self.read()

    def read(self) -> None:
        """Read `current` from best_model.pt."""
        path, found = self._folder / names.BEST, None
        with contextlib.suppress(CheckpointError):
            if path.exists():
                found = self._guard.ask(lambda watch: best_of(read_meta(path)))
        self.current = found  # one assignment, because the training thread reads it

    def _restore(self, known: CheckpointMeta) -> None:
        store = Store(self._folder)
        if known.best_step is None:
            return
        try:
            source = self._guard.ask(lambda watch: _find_best(store, known))
            if source is not None:
                store.copy(source, _operations(source.name))
                log.info("restored %s from %s", names.BEST, source.name)
        except (OSError, CheckpointError) as error:
            log.warning("%s is missing and cannot be restored: %s", names.BEST, error)


def _find_best(store: Store, known: CheckpointMeta) -> Path | None:
    """Return a valid file of the best step that the state `known` of the run records, or None."""
    for path in store.files():
        with contextlib.suppress(CheckpointError):
            meta = read_meta(path)
            is_best = meta.step == meta.best_step == known.best_step
            if is_best and meta.run.id == known.run.id:
                check(path)
                return path
    return None


def _operations(source: str) -> list[Publish | Link]:
    """Return the operations that make best_model.pt and its copy hold the state in `source`."""
    is_copy = names.role_of(source) in INDEPENDENT
    operations: list[Publish | Link] = [
        Publish(names.BEST) if is_copy else Link(source, names.BEST)
    ]
    return [*operations, *([Publish(names.BEST_BACKUP)] if source != names.BEST_BACKUP else [])]
