"""What a save does to a checkpoints/ folder, decided without touching it.

`plan_save` turns the names of the files present and a save request into a list of operations.
They are ordered so that a crash after any of them leaves at least one complete valid state: first
the new state becomes durable under its own name, then the role names move to it, and deletions come
last.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.names import Role

COPIES = 2  # of the bytes of a regular save: its file, and the independent copy
SINGLE_ROLES = 5  # latest_backup, rolling_last_backup, and the three of the best model
UNTIL_DELETED = 2  # the surplus file of a pool, and a copy that is written before it replaces one
PINNED = 1  # the file that the process was resumed from, beside its pool


@dataclass(frozen=True)
class Retention:
    """How many files the pools keep; of ends of epochs all, if `keep_epochs` is None."""

    keep_rolling: int
    keep_emergency: int
    keep_epochs: int | None = None


@dataclass(frozen=True)
class SaveRequest:
    """A state that has come, and why it is saved: at least one of the reasons holds."""

    step: int
    when: datetime
    regular: bool = False
    emergency: bool = False
    best: bool = False
    epoch_ended: int | None = None


@dataclass(frozen=True)
class Publish:
    """Write the new state, in blocks of its own, as `name`."""

    name: str


@dataclass(frozen=True)
class Link:
    """Make `name` stand for the state that `source` stands for."""

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
    """The operations that save `request` into a folder that holds the files `present`.

    `pinned` names are never deleted: the state that this process was resumed from.
    """
    own = own_names(request)
    keep_best = [Link(names.BEST, names.BEST_PREVIOUS)] if names.BEST in present else []
    operations: list[Operation] = []
    if own[0] == names.BEST:  # its copy first: no role moves before the new state is durable
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
    """Return how many files can take space of their own at the same time, in the middle of a save.

    `epochs` is how many ends of epochs the run has, or 0 if it saves none.
    """
    kept = retention.keep_epochs
    pools = retention.keep_rolling + retention.keep_emergency
    pools += epochs if kept is None else min(epochs, kept)
    return pools + SINGLE_ROLES + PINNED + UNTIL_DELETED


def most_bytes(retention: Retention, size: int) -> int | None:
    """Return what files of `size` bytes can take at most; None where every epoch's end is kept."""
    kept = retention.keep_epochs
    return None if kept is None else size * most_files(retention, kept)


def copies(request: SaveRequest) -> int:
    """How many times a save writes the bytes of the state: its file and the independent copies."""
    return 1 + request.regular + request.best


def replaced_names(request: SaveRequest) -> list[str]:
    """Return the names whose files a save of `request` lets take the place of others."""
    return [names.LATEST, *([names.BEST] if request.best else [])]


def own_names(request: SaveRequest) -> list[str]:
    """The names that the new state has besides latest.pt; the others are links of the first."""
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
        raise ValueError("a save needs a reason")
    return own


def _surplus(
    present: Collection[str], own: Collection[str], role: Role, keep: int | None
) -> list[str]:
    """The oldest files of a pool beyond `keep`, by step and then by the time in the name.

    What was just saved is the newest, even beside a stray file of a later step. None keeps all.
    """
    if keep is None:
        return []
    pool = [name for name in {*present, *own} if names.role_of(name) is role]
    pool.sort(key=lambda name: (name in own, names.number_in(name) or 0, name))
    return pool[: max(0, len(pool) - keep)]
