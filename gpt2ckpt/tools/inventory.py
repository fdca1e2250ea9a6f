"""Which checkpoints a run has, by what they say of themselves: only the head of a file is read."""

import math
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.archive_folders import ABANDONED, CORRUPT, archive_folders
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.reading import read_meta
from gpt2ckpt.checkpoint.state import CheckpointMeta
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.files.disk_usage import BLOCK
from gpt2ckpt.files.links import inode_of
from gpt2ckpt.runs.newest import parse_moment
from gpt2ckpt.tools.targets import Run


class ListGroup(StrEnum):
    """The headings under which checkpoints are listed."""

    LATEST = "latest"
    BEST = "best"
    ROLLING = "rolling"
    EMERGENCY = "emergency"
    EPOCH = "epoch"
    ABANDONED = "abandoned"
    CORRUPT = "corrupt"


GROUPS = {
    Role.LATEST: ListGroup.LATEST,
    Role.LATEST_BACKUP: ListGroup.LATEST,
    Role.ROLLING: ListGroup.ROLLING,
    Role.ROLLING_BACKUP: ListGroup.ROLLING,
    Role.EMERGENCY: ListGroup.EMERGENCY,
    Role.BEST: ListGroup.BEST,
    Role.BEST_BACKUP: ListGroup.BEST,
    Role.BEST_PREVIOUS: ListGroup.BEST,
    Role.EPOCH: ListGroup.EPOCH,
}


@dataclass(frozen=True)
class Inode:
    """What the file system knows of a file: its number of names, its bytes, those on disk."""

    key: tuple[int, int]
    links: int
    size: int
    disk_bytes: int


@dataclass(frozen=True)
class ListedCheckpoint:
    """One name of a checkpoint. Where its head is damaged, `error` is the reason."""

    path: Path
    run: Run
    group: ListGroup
    role: str
    inode: Inode
    meta: CheckpointMeta
    error: str | None = None

    @property
    def step(self) -> int | None:
        return self.meta.step if self.meta.has("step") else None

    @property
    def epoch(self) -> int | None:
        return self.meta.epoch if self.meta.has("epoch") else None

    @property
    def val_loss(self) -> float | None:
        """May be not finite."""
        return self.meta.val_loss

    @property
    def saved_at(self) -> datetime | None:
        """With its time zone."""
        return parse_moment(self.meta.saved_at)


def scan(run: Run) -> list[ListedCheckpoint]:
    """Every checkpoint of a run: group by group, a pool from its oldest, what is set aside last.

    A file that a live run deletes meanwhile is left out.
    """
    entries = [_entry(path, run, None) for path in Store(run.folder).files()]
    for group, prefix in ((ListGroup.ABANDONED, ABANDONED), (ListGroup.CORRUPT, CORRUPT)):
        for folder in archive_folders(run.folder, prefix):
            paths = (path for path in folder.rglob("*.pt") if names.role_of(path.name))
            entries += [_entry(path, run, group) for path in sorted(paths)]
    found = [entry for entry in entries if entry is not None]
    return sorted(found, key=_place)


def all_roles(entry: ListedCheckpoint, entries: list[ListedCheckpoint]) -> list[str]:
    """The role of a name, then those of the other names of the same file."""
    shared = [other.role for other in entries if other.inode.key == entry.inode.key]
    return list(dict.fromkeys([entry.role, *shared]))


def _entry(path: Path, run: Run, aside: ListGroup | None) -> ListedCheckpoint | None:
    role = names.role_of(path.name)
    assert role is not None
    try:
        info = path.stat()
        meta, error = read_meta(path), None
    except FileNotFoundError:
        return None
    except CheckpointError as reason:
        if not path.exists():
            return None
        meta, error = CheckpointMeta.from_dict({}), str(reason)
    inode = Inode(inode_of(info), info.st_nlink, info.st_size, info.st_blocks * BLOCK)
    return ListedCheckpoint(
        path, run, aside or GROUPS[role], str(aside or role), inode, meta, error
    )


def _place(entry: ListedCheckpoint) -> tuple[int, Path, float, str]:
    """Where an entry stands in the list."""
    number = names.number_in(entry.path.name)
    aside = entry.group in (ListGroup.ABANDONED, ListGroup.CORRUPT)
    folder = entry.path.parent if aside else entry.run.folder
    pooled = math.inf if number is None and entry.group is ListGroup.ROLLING else number or 0
    return list(ListGroup).index(entry.group), folder, pooled, entry.path.name
