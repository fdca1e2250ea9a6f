"""Which files a save writes, renames and deletes, and in which order. No I/O.

`plan_save` computes a list of operations from the names of the existing files and a save request.
The order leaves at least one complete valid state after a crash at any point: first the new state
becomes durable under its own name, then the names of its roles are linked to it, and deletions come
last. A numbered role (rolling, emergency, epoch) keeps several files.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.names import Role

COPIES = 2  # files that a regular save writes: its own file and an independent copy
SINGLE_ROLES = 5  # latest_backup, rolling_last_backup, and three files of the best model
UNTIL_DELETED = 2  # a surplus file, and a copy before it replaces the older copy
PINNED = 1  # the file that the process was resumed from, which is kept in addition


@dataclass(frozen=True)
class Retention:
    """How many files of each numbered role are kept; None keeps the end of every epoch."""

    keep_rolling: int
    keep_emergency: int
    keep_epochs: int | None = None


@dataclass(frozen=True)
class SaveRequest:
    """The step and the roles of a state to be saved. It has at least one role.

    Attributes:
        step: The number of optimizer steps done.
        when: The time in the name of an emergency file.
        regular, emergency, best: Whether the state has this role.
        epoch_ended: The epoch that ended with this step, if its end is saved.
    """

    step: int
    when: datetime
    regular: bool = False
    emergency: bool = False
    best: bool = False
    epoch_ended: int | None = None


@dataclass(frozen=True)
class Publish:
    """Write the new state to a new file `name`."""

    name: str


@dataclass(frozen=True)
class Link:
    """Link `name` to the file `source`, in place of the file that has this name."""

    source: str
    name: str


@dataclass(frozen=True)
class Delete:
    name: str


Operation = Publish | Link | Delete


def plan_save(
    present: Collection[str],
    request: SaveRequest,
    retention: Retention,
    pinned: Collection[str] = (),
) -> list[Operation]:
    """Return the operations of a save in order.

    Args:
        present: The names of the files in the folder.
        request: The state and its roles.
        retention: How many files are kept.
        pinned: Names that are never deleted.
    """
    own = own_names(request)
    keep_best = [Link(names.BEST, names.BEST_PREVIOUS)] if names.BEST in present else []
    operations: list[Operation] = []
    if own[0] == names.BEST:  # its copy first: no name moves before the new state is durable
        operations += [Publish(names.BEST_BACKUP), *keep_best]
    operations.append(Publish(own[0]))
    if names.BEST in own[1:]:
        operations += keep_best
    operations += [Link(own[0], name) for name in own[1:]]
    if names.LATEST in present:
        operations.append(Link(names.LATEST, names.LATEST_BACKUP))
    operations.append(Link(own[0], names.LATEST))
    if names.BEST in own[1:]:
        operations.append(Publish(names.BEST_BACKUP))
    if request.regular:
        operations.append(Publish(names.ROLLING_BACKUP))
    surplus = [
        *_surplus(present, own, Role.ROLLING, retention.keep_rolling),
        *_surplus(present, own, Role.EMERGENCY, retention.keep_emergency),
        *_surplus(present, own, Role.EPOCH, retention.keep_epochs),
    ]
    return operations + [Delete(name) for name in surplus if name not in pinned]


def most_files(retention: Retention, epochs: int) -> int:
    """Return the largest number of files with their own disk blocks, also during a save.

    Args:
        retention: How many files are kept.
        epochs: The number of epochs of the run; 0 if their ends are not saved.
    """
    kept = retention.keep_epochs
    numbered = retention.keep_rolling + retention.keep_emergency
    numbered += epochs if kept is None else min(epochs, kept)
    return numbered + SINGLE_ROLES + PINNED + UNTIL_DELETED


def most_bytes(retention: Retention, size: int) -> int | None:
    """Return the most bytes that files of `size` bytes take; None if every epoch's end is kept."""
    kept = retention.keep_epochs
    return None if kept is None else size * most_files(retention, kept)


def copies(request: SaveRequest) -> int:
    """Return how many files a save writes: its own file and its independent copies."""
    return 1 + request.regular + request.best


def replaced_names(request: SaveRequest) -> list[str]:
    """Return the existing names that a save links to the new state."""
    return [names.LATEST, *([names.BEST] if request.best else [])]


def own_names(request: SaveRequest) -> list[str]:
    """Return the names of the new state except latest.pt; the first one is written as a file.

    Raises ValueError for a request without a role.
    """
    own = []
    if request.regular:
        own.append(names.rolling(request.step))
    if request.emergency:
        own.append(names.emergency(request.step, request.when))
    if request.epoch_ended is not None:
        own.append(names.epoch(request.epoch_ended))
    if request.best:
        own.append(names.BEST)
    if not own:
        raise ValueError("a save needs a role")
    return own


def _surplus(
    present: Collection[str], own: Collection[str], role: Role, keep: int | None
) -> list[str]:
    """Return the oldest files of a role beyond `keep`, by step and then by the time in the name.

    The new state counts as the newest, even if an older file has a later step. None keeps all.
    """
    if keep is None:
        return []
    of_role = [name for name in {*present, *own} if names.role_of(name) is role]
    of_role.sort(key=lambda name: (name in own, names.number_in(name) or 0, name))
    return of_role[: max(0, len(of_role) - keep)]
