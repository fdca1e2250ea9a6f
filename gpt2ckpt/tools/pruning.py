"""What `prune` would delete, decided without touching anything."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.tools.inventory import ListedCheckpoint, ListGroup

ASIDE = (ListGroup.ABANDONED, ListGroup.CORRUPT)


@dataclass(frozen=True)
class Limits:
    """How many files of each pool stay (None: all), and which folders set aside may go."""

    rolling: int | None = None
    emergency: int | None = None
    epochs: int | None = None
    abandoned: bool = False
    corrupt: bool = False


@dataclass(frozen=True)
class PrunePlan:
    """What goes from a run, and a sentence if something had to stay that was asked to go."""

    surplus: list[ListedCheckpoint]
    note: str = ""


def plan_prune(
    entries: list[ListedCheckpoint],
    limits: Limits,
    is_valid: Callable[[ListedCheckpoint], bool],
    *,
    is_live: bool,
) -> PrunePlan:
    """What may go from a run with these entries.

    Only files of the pools and of folders set aside are candidates: latest, best and their
    backups never are. In a live run (`is_live`) the newest file of each pool stays as well: a save
    may be giving it its other names just now. The last valid state stays in any case: `is_valid`
    is asked about files that would be left until one is valid, and else about the candidates.
    """
    surplus = candidates(entries, limits, is_live=is_live)
    going = {entry.path for entry in surplus}
    left = [entry for entry in entries if entry.path not in going]
    if not surplus or any(map(is_valid, _newest_first(left))):
        return PrunePlan(surplus)
    last = next((entry for entry in _newest_first(surplus) if is_valid(entry)), None)
    if last is None:
        return PrunePlan([], "no valid state is left in it, so that nothing is deleted")
    rest = [entry for entry in surplus if entry is not last]
    return PrunePlan(rest, f"{last.path.name} stays: it is the last valid state")


def candidates(
    entries: list[ListedCheckpoint], limits: Limits, *, is_live: bool
) -> list[ListedCheckpoint]:
    """The entries beyond the limits, in the order in which they are listed."""
    pools = {
        Role.ROLLING: limits.rolling,
        Role.EMERGENCY: limits.emergency,
        Role.EPOCH: limits.epochs,
    }
    going: set[str] = {
        str(entry.path)
        for entry in entries
        if (entry.group is ListGroup.ABANDONED and limits.abandoned)
        or (entry.group is ListGroup.CORRUPT and limits.corrupt)
    }
    for role, keep in pools.items():
        pool = [entry for entry in entries if entry.role == role and entry.group not in ASIDE]
        pool.sort(key=lambda entry: (names.number_in(entry.path.name) or 0, entry.path.name))
        if keep is not None:
            stays = max(keep, 1) if is_live else keep
            going |= {str(entry.path) for entry in pool[: max(0, len(pool) - stays)]}
    return [entry for entry in entries if str(entry.path) in going]


def freed_bytes(going: Iterable[ListedCheckpoint]) -> int:
    """The disk space that comes free: of files whose every name goes, in any directory."""
    going = list(going)
    gone = Counter(entry.inode.key for entry in going)
    inodes = {entry.inode.key: entry.inode for entry in going}
    return sum(inode.disk_bytes for key, inode in inodes.items() if gone[key] >= inode.links)


def _newest_first(entries: list[ListedCheckpoint]) -> list[ListedCheckpoint]:
    """Files of the run itself before those set aside; each file on disk once."""

    def rank(entry: ListedCheckpoint) -> tuple[bool, bool, int]:
        return entry.group is ListGroup.CORRUPT, entry.group in ASIDE, -(entry.step or 0)

    once = {entry.inode.key: entry for entry in reversed(entries)}
    return sorted(once.values(), key=rank)
