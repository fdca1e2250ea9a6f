"""Lists the checkpoints of a run with their metadata; reads only the head of each file."""

import math
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

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
from gpt2ckpt.tools.targets import RunPaths


class ListGroup(StrEnum):
    """The headings under which `list` shows checkpoints."""

    LATEST = "latest"
    BEST = "best"
    ROLLING = "rolling"
    EMERGENCY = "emergency"
    EPOCH = "epoch"
    ABANDONED = "abandoned"
    CORRUPT = "corrupt"


MOVED_AWAY = (ListGroup.ABANDONED, ListGroup.CORRUPT)
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
    """A file on disk, which may have several names.

    Attributes:
        key: the device and inode number.
        links: the number of names (hard links).
        size: the length in bytes.
        disk_bytes: the bytes that the file occupies on disk.
    """

    key: tuple[int, int]
    links: int
    size: int
    disk_bytes: int


@dataclass(frozen=True)
class ListedCheckpoint:
    """One name of a checkpoint file; `error` is set if the head of the file cannot be read."""

    path: Path
    run: RunPaths
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
    def saved_at(self) -> datetime | None:
        """Return the time of the save, with a time zone."""
        return parse_moment(self.meta.saved_at)


def list_checkpoints(run: RunPaths) -> list[ListedCheckpoint]:
    """Return the checkpoints of a run by group, oldest first; archived and corrupt files last.

    A file that a live run deletes meanwhile is omitted.
    """
    checkpoints = [_read(path, run, None) for path in Store(run.folder).files()]
    for group, prefix in ((ListGroup.ABANDONED, ABANDONED), (ListGroup.CORRUPT, CORRUPT)):
        for folder in archive_folders(run.folder, prefix):
            paths = (path for path in folder.rglob("*.pt") if names.role_of(path.name))
            checkpoints += [_read(path, run, group) for path in sorted(paths)]
    found = [checkpoint for checkpoint in checkpoints if checkpoint is not None]
    return sorted(found, key=_place)


def all_roles(checkpoint: ListedCheckpoint, checkpoints: list[ListedCheckpoint]) -> list[str]:
    """Return the role of a checkpoint, then the roles of the other names of the same file."""
    shared = [other.role for other in checkpoints if other.inode.key == checkpoint.inode.key]
    return list(dict.fromkeys([checkpoint.role, *shared]))


def as_record(checkpoint: ListedCheckpoint, checkpoints: list[ListedCheckpoint]) -> dict[str, Any]:
    """Return a checkpoint among those of its run as `list --json` prints it."""
    return {
        "path": str(checkpoint.path),
        "roles": all_roles(checkpoint, checkpoints),
        "group": str(checkpoint.group),
        "step": checkpoint.step,
        "epoch": checkpoint.epoch,
        "val_loss": checkpoint.meta.val_loss,
        "size_bytes": checkpoint.inode.size,
        "saved_at": checkpoint.meta.saved_at or None,
        "reason": checkpoint.meta.reason or None,
        "run_dir": str(checkpoint.run.directory),
        "error": checkpoint.error,
    }


def _read(path: Path, run: RunPaths, moved: ListGroup | None) -> ListedCheckpoint | None:
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
        path, run, moved or GROUPS[role], str(moved or role), inode, meta, error
    )


def _place(checkpoint: ListedCheckpoint) -> tuple[int, Path, float, str]:
    """Return the sort key of `list_checkpoints`."""
    number = names.number_in(checkpoint.path.name)
    is_moved = checkpoint.group in MOVED_AWAY
    folder = checkpoint.path.parent if is_moved else checkpoint.run.folder
    order = math.inf if number is None and checkpoint.group is ListGroup.ROLLING else number or 0
    return list(ListGroup).index(checkpoint.group), folder, order, checkpoint.path.name
