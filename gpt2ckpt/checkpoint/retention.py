"""The plan of a save: which names change, in which order, and which files are deleted. No I/O.

`plan_save` turns the names of the existing files and a save request into a list of operations.
Their order leaves at least one complete valid state after a crash at any point: first the new state
becomes durable under its own name, then the names of its roles move to it, and deletions come last.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.names import Role

COPIES = 2  # files that a regular save writes: its own file and the independent copy
SINGLE_ROLES = 5  # latest_backup, rolling_last_backup, and three files of the best model
UNTIL_DELETED = 2  # the surplus file of a pool, and a copy before it replaces another
PINNED = 1  # the file that the process was resumed from, in addition to its pool


@dataclass(frozen=True)
class Retention:
    """The number of files that each pool keeps; None keeps the end of every epoch."""

    keep_rolling: int
    keep_emergency: int
    keep_epochs: int | None = None


@dataclass(frozen=True)
class SaveRequest:
    """A state to be saved, and its roles: at least one of them.

    Attributes:
        step: optimizer steps done.
        when: names an emergency file.
        regular, emergency, best: the roles.
        epoch_ended: the epoch that this step ended, if that is a role.
    """

    step: int
    when: datetime
    regular: bool = False
    emergency: bool = False
    best: bool = False
    epoch_ended: int | None = None


@dataclass(frozen=True)
class Publish:
    """Write the new state to disk blocks of its own, as `name`."""

    name: str


@dataclass(frozen=True)
class Link:
    """Give the file `source` a further name, in place of the file that has this name."""

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
        present: the names of the files in the folder.
        request: the state and its roles.
        retention: the sizes of the pools.
        pinned: names that are never deleted.
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
    """Return the largest number of files with disk blocks of their own, also during a save.

    Args:
        retention: the sizes of the pools.
        epochs: the number of epochs of the run; 0 if their ends are not saved.
    """
    kept = retention.keep_epochs
    pools = retention.keep_rolling + retention.keep_emergency
    pools += epochs if kept is None else min(epochs, kept)
    return pools + SINGLE_ROLES + PINNED + UNTIL_DELETED


def most_bytes(retention: Retention, size: int) -> int | None:
    """Return the bytes that files of `size` bytes can take; None if all ends of epochs are kept."""
    kept = retention.keep_epochs
    return None if kept is None else size * most_files(retention, kept)


def copies(request: SaveRequest) -> int:
    """Return how many files a save writes: its own file and the independent copies."""
    return 1 + request.regular + request.best


def replaced_names(request: SaveRequest) -> list[str]:
    """Return the names that a save moves, so that their files replace other files."""
    return [names.LATEST, *([names.BEST] if request.best else [])]


def own_names(request: SaveRequest) -> list[str]:
    """Return the names of the new state besides latest.pt; the first is the file that is written.

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
    """Return the oldest files of a pool beyond `keep`, by step and then by the time in the name.

    The new state is the newest, even if a stray file has a later step. None keeps all files.
    """
    if keep is None:
        return []
    pool = [name for name in {*present, *own} if names.role_of(name) is role]
    pool.sort(key=lambda name: (name in own, names.number_in(name) or 0, name))
    return pool[: max(0, len(pool) - keep)]
