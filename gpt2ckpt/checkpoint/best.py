"""The best model of a run: what best_model.pt holds, and nothing that is remembered elsewhere."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.policy import Link, Publish
from gpt2ckpt.checkpoint.reading import check, read_meta
from gpt2ckpt.checkpoint.repair import INDEPENDENT
from gpt2ckpt.checkpoint.store import Store, owner_of
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.files import durable


@dataclass(frozen=True)
class Best:
    """The validation loss of the best model, in nats per token, and the step that it is of.

    `evaluated_on` is a digest of the blocks that the loss was measured on; a file that is older
    than it has None, and `data` in any case, a digest of all of the run's data.
    """

    loss: float
    step: int
    evaluated_on: str | None = None
    data: str | None = None

    def is_on(self, evaluated_on: str, data: str) -> bool:
        """Whether a loss that was measured on these blocks can be compared with it."""
        return evaluated_on == self.evaluated_on if self.evaluated_on else data == self.data


def best_of(meta: Mapping[str, Any]) -> Best | None:
    """Return what a state says of itself as the best model; None if it has no loss."""
    loss, step, data = meta.get("val_loss"), meta.get("step"), meta.get("data")
    data = data if isinstance(data, dict) else {}
    if type(loss) is not float or not math.isfinite(loss) or type(step) is not int:
        return None
    digests = (data.get(key) for key in ("evaluated_on", "digest"))
    return Best(loss, step, *(text if isinstance(text, str) else None for text in digests))


def find_best_file(folder: Path, state: Mapping[str, Any]) -> Path | None:
    """Return a valid file of the step that is the best one by `state`; None if none is left.

    best_model.pt is gone after the run has gone back to an older state, or by somebody's hand.
    """
    step = state.get("best_step")
    files = Store(folder).files()
    return next((path for path in files if _holds_best(path, step, owner_of(state))), None)


def restore_best_file(folder: Path, holder: Path) -> str:
    """Let best_model.pt stand for the state in `holder`, a file in `folder`, and so its copy.

    Returns what was done. Raises OSError or CheckpointError.
    """
    is_copy = names.role_of(holder.name) in INDEPENDENT
    done: list[Publish | Link] = [Publish(names.BEST) if is_copy else Link(holder.name, names.BEST)]
    if holder.name != names.BEST_BACKUP:
        done.append(Publish(names.BEST_BACKUP))
    apply_operations(folder, holder, done)
    return f"{names.BEST} was missing, and is made again from {holder.name}"


def apply_operations(folder: Path, source: Path, operations: list[Publish | Link]) -> None:
    """Give names in `folder` the state in `source`. Raises OSError or CheckpointError."""
    for operation in operations:
        match operation:
            case Publish(name):
                durable.publish(folder / name, durable.chunks(source), check)
            case Link(linked, name):
                durable.link(folder / linked, folder / name)


def _holds_best(path: Path, step: Any, run: str) -> bool:
    try:
        meta = read_meta(path)
        if (meta["step"], meta["best_step"], owner_of(meta)) != (step, step, run):
            return False
        check(path)
    except (CheckpointError, KeyError):
        return False
    return True
