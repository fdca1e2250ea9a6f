"""Complete a save that a kill interrupted after its file was durable and before it had all names.

The file that the save left gets the missing names. No state is captured again, and the config in
the file decides which names are missing.
"""

from pathlib import Path

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.newest_valid import Found
from gpt2ckpt.checkpoint.reading import read_meta
from gpt2ckpt.checkpoint.retention import Link, Publish
from gpt2ckpt.checkpoint.state import CheckpointMeta
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError


def missing_operations(folder: Path, found: Found) -> list[Publish | Link]:
    """Return the operations that the save of `found` has not carried out, in their order.

    A name is missing if no file has it, or if its file holds an earlier step of the run. An
    unreadable file is not replaced here, but by a repair.
    """
    if found.path.parent.resolve() != folder.resolve():
        return []  # abandoned
    state, source = found.state, found.path.name
    is_best = bool(state.setting("checkpoint", "save_best")) and state.best_step == state.step
    undone: list[Publish | Link] = []
    if _is_behind(folder / names.LATEST, state):
        if is_best and _is_behind(folder / names.BEST, state):
            undone += _moved(folder, names.BEST, names.BEST_PREVIOUS)
            is_second_copy = source == names.BEST_BACKUP
            undone.append(Publish(names.BEST) if is_second_copy else Link(source, names.BEST))
        if source == names.BEST_BACKUP:
            source = names.BEST
        epoch = state.epoch - 1
        saves_epochs = bool(state.setting("checkpoint", "save_epochs"))
        is_end = epoch >= 0 and saves_epochs and names.ends_epoch(state, epoch)
        if is_end and not (folder / names.epoch(epoch)).exists():
            undone.append(Link(source, names.epoch(epoch)))
        undone += _moved(folder, names.LATEST, names.LATEST_BACKUP)
        undone.append(Link(source, names.LATEST))
    if is_best and _is_behind(folder / names.BEST_BACKUP, state):
        undone.append(Publish(names.BEST_BACKUP))
    is_regular = (folder / names.rolling(state.step)).exists()
    if is_regular and _is_behind(folder / names.ROLLING_BACKUP, state):
        undone.append(Publish(names.ROLLING_BACKUP))
    return undone


def complete_save(folder: Path, found: Found) -> list[str]:
    """Carry out the missing operations of the save of `found`.

    Call this only while no other process saves into the folder.

    Returns:
        The names that were added.

    Raises:
        OSError, CheckpointError: Each name then has its old state, or the state of `found`.
    """
    undone = missing_operations(folder, found)
    Store(folder).copy(found.path, undone)
    kept = (names.BEST_PREVIOUS, names.LATEST_BACKUP)
    return [operation.name for operation in undone if operation.name not in kept]


def _moved(folder: Path, name: str, kept: str) -> list[Publish | Link]:
    """Return the operation that keeps the older state of `name` under the name `kept`."""
    return [Link(name, kept)] if (folder / name).exists() else []


def _is_behind(path: Path, state: CheckpointMeta) -> bool:
    """Return whether a file is missing, or holds an earlier step of the same run."""
    if not path.exists():
        return True
    try:
        meta = read_meta(path)
    except CheckpointError:
        return False
    return meta.has("step") and meta.run.id == state.run.id and meta.step < state.step
