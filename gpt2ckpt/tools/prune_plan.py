"""Decides which files `prune` deletes; the caller verifies and deletes them."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.tools.inventory import MOVED_AWAY, ListedCheckpoint, ListGroup


@dataclass(frozen=True)
class PruneLimits:
    """How many files of each role to keep (None: all), and which moved files to delete."""

    rolling: int | None = None
    emergency: int | None = None
    epochs: int | None = None
    abandoned: bool = False
    corrupt: bool = False


@dataclass(frozen=True)
class PrunePlan:
    """The files to delete from a run; `note` says why a file beyond the limits is kept."""

    surplus: list[ListedCheckpoint]
    note: str = ""


def plan_prune(
    checkpoints: list[ListedCheckpoint],
    limits: PruneLimits,
    is_valid: Callable[[ListedCheckpoint], bool],
    *,
    is_live: bool,
) -> PrunePlan:
    """Return what to delete from a run with these checkpoints.

    Rolling, emergency, epoch, archived and quarantined files can be deleted; latest, best and their
    backups cannot. The last valid checkpoint of a run is never deleted.

    Args:
        checkpoints: all files of the run.
        limits: what the user wants to keep.
        is_valid: verifies a file. The files to keep are verified until one is valid. If none of
            them is, the files to delete are verified.
        is_live: whether the run is training. Then the newest file of each role is kept, because a
            save may be about to link other names to that file.
    """
    surplus = _surplus(checkpoints, limits, is_live=is_live)
    left = [item for item in checkpoints if item not in surplus]
    if not surplus or any(map(is_valid, _newest_first(left))):
        return PrunePlan(surplus)
    last = next((item for item in _newest_first(surplus) if is_valid(item)), None)
    if last is None:
        return PrunePlan([], "nothing is deleted: the run has no valid checkpoint")
    rest = [item for item in surplus if item is not last]
    return PrunePlan(rest, f"kept {last.path.name}: it is the last valid checkpoint")


def freed_bytes(surplus: Iterable[ListedCheckpoint]) -> int:
    """Return the bytes that a deletion frees: a file counts if all its names are deleted."""
    surplus = list(surplus)
    deleted = Counter(item.inode.key for item in surplus)
    inodes = {item.inode.key: item.inode for item in surplus}
    return sum(inode.disk_bytes for key, inode in inodes.items() if deleted[key] >= inode.links)


def _surplus(
    checkpoints: list[ListedCheckpoint], limits: PruneLimits, *, is_live: bool
) -> list[ListedCheckpoint]:
    """Return the files beyond the limits, in the order of `checkpoints`."""
    limit_of = {
        Role.ROLLING: limits.rolling,
        Role.EMERGENCY: limits.emergency,
        Role.EPOCH: limits.epochs,
    }
    moved = {ListGroup.ABANDONED: limits.abandoned, ListGroup.CORRUPT: limits.corrupt}
    surplus = {item.path for item in checkpoints if moved.get(item.group)}
    for role, keep in limit_of.items():
        if keep is not None:
            files = [i for i in checkpoints if i.role == role and i.group not in MOVED_AWAY]
            files.sort(key=lambda item: (names.number_in(item.path.name) or 0, item.path.name))
            kept = max(keep, 1) if is_live else keep
            surplus |= {item.path for item in files[: max(0, len(files) - kept)]}
    return [item for item in checkpoints if item.path in surplus]


def _newest_first(checkpoints: list[ListedCheckpoint]) -> list[ListedCheckpoint]:
    """Return each file on disk once, archived and quarantined files last."""

    def rank(item: ListedCheckpoint) -> tuple[bool, bool, int]:
        return item.group is ListGroup.CORRUPT, item.group in MOVED_AWAY, -(item.step or 0)

    once = {item.inode.key: item for item in reversed(checkpoints)}
    return sorted(once.values(), key=rank)
