"""Find the run that was trained last, by the times that the runs record themselves.

A directory can have any name, and can be copied, moved or unpacked. So neither its name nor the
times of its files count. What counts is the time of saving in the metadata of its newest
checkpoints, and the time in the last line of metrics.jsonl, both in UTC. No tensor is read.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.reading import read_meta
from gpt2ckpt.checkpoint.state import CheckpointMeta
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError, InputError
from gpt2ckpt.files.permissions import access_error, require_access
from gpt2ckpt.runs.claim import holds_checkpoints
from gpt2ckpt.runs.layout import (
    CHECKPOINTS,
    EVENTS,
    HISTORY,
    JOBS,
    LINEAGE,
    RECORD,
    STAMP,
    STAMPED,
    TENSORBOARD,
    WANDB,
)
from gpt2ckpt.units import plural

NO_CHECKPOINT = "it holds no checkpoint"
SWEEP_JOB = "it is a job of a sweep, which +resume=auto skips; +resume=latest resumes it"
TAIL = 1 << 14  # bytes at the end of metrics.jsonl that contain its last line


@dataclass(frozen=True)
class RunRecord:
    """The name of a run, and when it was trained, as its directory records them.

    Attributes:
        directory: The run directory.
        is_job: Whether the run is a job of a sweep.
        name: The run's name.
        trained: The time of its last known step.
        problem: The reason why none of its checkpoints can be read; empty if any can.
    """

    directory: Path
    is_job: bool = False
    name: str | None = None
    trained: datetime | None = None
    problem: str = ""

    @property
    def age(self) -> tuple[datetime, bool, str]:
        """A key to sort by. Among copies of a run, a directory with a default name is newest."""
        stamped = STAMPED.fullmatch(self.directory.name) is not None
        return self.trained or datetime.min.replace(tzinfo=UTC), stamped, str(self.directory)


@dataclass(frozen=True)
class Newest:
    """The run that was trained last, if any, and the newer runs that were skipped."""

    directory: Path | None
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def newest_run(root: Path, name: str | None = None, *, with_jobs: bool = True) -> Newest:
    """Return the run below `root` that was trained last.

    A run without a readable checkpoint counts too if it records when it was trained: an older run
    must not silently take its place.

    Args:
        root: The folder of the runs.
        name: The name of the runs that count; None for any name.
        with_jobs: Whether jobs of sweeps count; otherwise a newer job is skipped.
    """
    found = [read_record(directory, is_job=is_job) for directory, is_job in run_directories(root)]
    named = [record for record in found if name in (None, record.name)]
    records = [record for record in named if with_jobs or not record.is_job]
    usable = [r for r in records if not r.problem or (r.problem != NO_CHECKPOINT and r.trained)]
    newest = max(usable, key=lambda record: record.age, default=None)
    later = [r for r in records if r.problem and _is_later(r, newest)]
    later.sort(key=lambda record: record.age, reverse=True)
    more = len(later) - 1
    others = f"; {plural(more, 'other newer run')} skipped, too" if more > 0 else ""
    skipped = [(record.directory, record.problem + others) for record in later[:1]]
    jobs = [r for r in named if r not in records and not r.problem and _is_later(r, newest)]
    if jobs:
        skipped.append((max(jobs, key=lambda record: record.age).directory, SWEEP_JOB))
    return Newest(newest.directory if newest else None, skipped)


def _is_later(record: RunRecord, newest: RunRecord | None) -> bool:
    """Return whether a run was trained later than `newest`, or may have been."""
    return newest is None or record.trained is None or record.age > newest.age


def run_directories(root: Path) -> list[tuple[Path, bool]]:
    """Return each run directory below `root`, and whether it is a job of a sweep.

    Directories that cannot be read may be runs, and are included. A run with links to it is
    returned once. Hidden directories are not searched. Raises InputError if `root` cannot be read.
    """
    found: dict[Path, Path] = {}

    def note_unreadable(error: OSError) -> None:
        if error.filename and not isinstance(error, FileNotFoundError):  # deleted in the meantime
            found[Path(error.filename).absolute()] = Path(error.filename)

    require_access(root)
    linked: list[Path] = []
    sweeps: set[Path] = set()
    for parent, inner, files in os.walk(root, onerror=note_unreadable):
        directory = Path(parent)
        if JOBS in files:
            sweeps.add(directory)
        if CHECKPOINTS in inner or not {HISTORY, EVENTS, LINEAGE}.isdisjoint(files):
            found[directory.resolve()] = directory
        linked += [path for name in inner if (path := directory / name).is_symlink()]
        inner[:] = [
            name
            for name in inner
            if name not in (CHECKPOINTS, WANDB, TENSORBOARD) and not name.startswith(".")
        ]
    for path in linked:
        if path.name == CHECKPOINTS:
            continue
        if access_error(path) or (path / CHECKPOINTS).is_dir():
            found.setdefault(path.resolve(), path)
    return [(path, not sweeps.isdisjoint(path.parents)) for path in found.values()]


def read_record(directory: Path, *, is_job: bool = False) -> RunRecord:
    """Return the record of the run in `directory`."""
    metas, problem = list(_newest_metas(directory / CHECKPOINTS)), ""
    if not metas:
        problem = "no checkpoint in it can be read"
        with suppress(InputError):  # the folder itself cannot be read
            if not holds_checkpoints(directory):
                problem = NO_CHECKPOINT
    name = next((meta.run.name for meta in metas if meta.run.name), None) or _launched_as(directory)
    return RunRecord(directory, is_job, name, _trained(directory, metas), problem)


def last_trained(directory: Path, folder: Path) -> datetime | None:
    """Return when the run in `directory`, with checkpoints in `folder`, was trained last."""
    return _trained(directory, list(_newest_metas(folder)))


def parse_moment(text: str) -> datetime | None:
    """Return the time in a text of a file, with its time zone; None for any other text."""
    with suppress(OverflowError, ValueError):
        moment = datetime.fromisoformat(text)
        # A moment in the first or last year may not exist in other time zones.
        return moment.astimezone() if 1 < moment.year < 9999 else None
    return None


def behind(directory: Path, now: datetime) -> datetime | None:
    """Return a time after all times that the runs beside `directory` record.

    If the clock was set back, a run that starts now records this time, and counts as the newest.
    Returns None if `now` is later than all recorded times.
    """
    with suppress(OSError):
        beside = [path for path in directory.parent.iterdir() if path != directory]
        found = [read_record(path).trained for path in beside if (path / CHECKPOINTS).is_dir()]
        latest = max((moment for moment in found if moment), default=now)
        return latest + timedelta(seconds=1) if latest > now else None
    return None


def _newest_metas(folder: Path) -> Iterator[CheckpointMeta]:
    """Yield the metadata of each file that may hold the newest state, or else of any file."""
    files = {path: names.role_of(path.name) for path in _files(folder)}

    def last(role: Role) -> list[Path]:
        of_role = [path for path, its in files.items() if its is role]
        return sorted(of_role, key=lambda path: names.number_in(path.name) or 0)[-1:]

    newest = [path for role in (Role.LATEST, Role.ROLLING, Role.EMERGENCY) for path in last(role)]
    found = False
    for path in [*newest, *(path for path in files if path not in newest)]:
        if found and path not in newest:
            return
        with suppress(CheckpointError):
            yield read_meta(path)
            found = True


def _files(folder: Path) -> list[Path]:
    with suppress(OSError):
        return Store(folder).files()
    return []


def _trained(directory: Path, metas: list[CheckpointMeta]) -> datetime | None:
    """Return the latest time that a run records, or else the time in the name of its directory."""
    moments = [
        *(parse_moment(meta.saved_at) for meta in metas),
        _last_logged(directory),
        _started_after(directory),
    ]
    known = [moment for moment in moments if moment]
    if known:
        return max(known)
    match = STAMPED.fullmatch(directory.name)
    with suppress(ValueError):
        return datetime.strptime(match["stamp"], STAMP).astimezone() if match else None
    return None


def _last_logged(directory: Path) -> datetime | None:
    """Return when the last step in metrics.jsonl was logged."""
    with suppress(OSError), (directory / HISTORY).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        for line in reversed(file.read().splitlines()):
            with suppress(KeyError, OSError, OverflowError, RecursionError, TypeError, ValueError):
                return datetime.fromtimestamp(json.loads(line)["time"], UTC)
    return None


def _started_after(directory: Path) -> datetime | None:
    with suppress(AttributeError, OSError, RecursionError, ValueError):
        follows = json.loads((directory / LINEAGE).read_text()).get("follows")
        return parse_moment(follows) if isinstance(follows, str) else None
    return None


def _launched_as(directory: Path) -> str | None:
    """Return the name in Hydra's record of the launch, for a run whose checkpoints have no name."""
    with suppress(OSError, UnicodeDecodeError):
        text = (directory / RECORD / "config.yaml").read_text()
        match = re.search(r"^name: *['\"]?(.*?)['\"]?$", text, re.MULTILINE)
        return match[1] if match else None
    return None
