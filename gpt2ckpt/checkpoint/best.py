"""The best model of a run: what best_model.pt holds, and nothing that is remembered elsewhere."""

import math
from dataclasses import dataclass
from pathlib import Path

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.policy import Link, Publish
from gpt2ckpt.checkpoint.reading import check, read_meta
from gpt2ckpt.checkpoint.repair import INDEPENDENT
from gpt2ckpt.checkpoint.state import CheckpointMeta
from gpt2ckpt.checkpoint.store import Store
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


def best_of(meta: CheckpointMeta) -> Best | None:
    """Return a state as the best model; None if it has no finite validation loss."""
    loss = meta.val_loss
    if type(loss) is not float or not math.isfinite(loss) or not meta.has("step"):
        return None
    return Best(loss, meta.step, meta.data.evaluated_on, meta.data.digest or None)


def find_best_file(folder: Path, step: int, run: str) -> Path | None:
    """Return a valid file of `step`, the best one of the run with the id `run`; None without one.

    best_model.pt is missing after a run went back to an older state, or after a user deleted it.
    """
    files = Store(folder).files()
    return next((path for path in files if _holds_best(path, step, run)), None)


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


def _holds_best(path: Path, step: int, run: str) -> bool:
    try:
        meta = read_meta(path)
        if (meta.step, meta.best_step, meta.run.id) != (step, step, run):
            return False
        check(path)
    except CheckpointError:
        return False
    return True
