"""Which run was trained last, by what the runs record of themselves.

A directory may have any name, and may be copied, moved or unpacked, so neither its name nor the
times of its files are looked at: the heads of the newest checkpoints say when these were saved, and
the last line of metrics.jsonl when the last step was logged, both in UTC. No tensor is read.
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

NONE_YET = "it holds no checkpoint"
OF_SWEEP = "it is a job of a sweep, which +resume=auto leaves to the sweep; +resume=latest takes it"
TAIL = 1 << 14  # bytes at the end of metrics.jsonl, in which its last line is found


@dataclass(frozen=True)
class RunRecord:
    """What a run says of itself. `trained` is the time of its last known step, if it says one.

    `problem` is why no checkpoint of it can be read. `is_job` for a job of a sweep.
    """

    directory: Path
    is_job: bool = False
    name: str | None = None
    trained: datetime | None = None
    problem: str = ""

    @property
    def age(self) -> tuple[datetime, bool, str]:
        """A key to sort by; of a run and its copies, the one that still has our name is last."""
        stamped = STAMPED.fullmatch(self.directory.name) is not None
        return self.trained or datetime.min.replace(tzinfo=UTC), stamped, str(self.directory)


@dataclass(frozen=True)
class Newest:
    """The run that was trained last, if there is one, and later ones that are passed over."""

    directory: Path | None
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def newest_run(root: Path, name: str | None = None, *, with_jobs: bool = True) -> Newest:
    """The run below `root` that was trained last; with `name`, of those that are called so.

    Without `with_jobs`, jobs of sweeps do not count: a later one is passed over. A run in which no
    checkpoint can be read counts if it says when it was trained: an older one must not take its
    place unnoticed.
    """
    found = [read_record(directory, is_job=is_job) for directory, is_job in run_directories(root)]
    named = [record for record in found if name in (None, record.name)]
    records = [record for record in named if with_jobs or not record.is_job]
    usable = [r for r in records if not r.problem or (r.problem != NONE_YET and r.trained)]
    newest = max(usable, key=lambda record: record.age, default=None)
    later = [r for r in records if r.problem and _is_later(r, newest)]
    later.sort(key=lambda record: record.age, reverse=True)
    others = {0: "", 1: "; nor does another run"}.get(
        len(later) - 1, f"; nor do {len(later) - 1} other runs"
    )
    skipped = [(record.directory, record.problem + others) for record in later[:1]]
    jobs = [r for r in named if r not in records and not r.problem and _is_later(r, newest)]
    if jobs:
        skipped.append((max(jobs, key=lambda record: record.age).directory, OF_SWEEP))
    return Newest(newest.directory if newest else None, skipped)


def _is_later(record: RunRecord, newest: RunRecord | None) -> bool:
    """Whether a run was trained later than the newest one, or may have been."""
    return newest is None or record.trained is None or record.age > newest.age


def run_directories(root: Path) -> list[tuple[Path, bool]]:
    """Every run directory below `root`, and whether it is a sweep's job; a linked one once.

    Hidden directories are not looked into. One that cannot be read may be a run: it is among them.
    Raises InputError if `root` cannot be read.
    """
    found: dict[Path, Path] = {}

    def note_unreadable(error: OSError) -> None:
        if error.filename and not isinstance(error, FileNotFoundError):  # else deleted meanwhile
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
    """What the run in `directory` says of itself."""
    metas, problem = list(_newest_metas(directory / CHECKPOINTS)), ""
    if not metas:
        problem = "no checkpoint in it can be read"
        with suppress(InputError):  # where the folder itself cannot be read
            if not holds_checkpoints(directory):
                problem = NONE_YET
    name = next((meta.run.name for meta in metas if meta.run.name), None) or _launched_as(directory)
    return RunRecord(directory, is_job, name, _trained(directory, metas), problem)


def last_trained(directory: Path, folder: Path) -> datetime | None:
    """When the run in `directory`, with its checkpoints in `folder`, was trained last."""
    return _trained(directory, list(_newest_metas(folder)))


def parse_moment(text: str) -> datetime | None:
    """Return a time out of a file, with its time zone; None for any other text."""
    with suppress(OverflowError, ValueError):
        moment = datetime.fromisoformat(text)
        # The first and the last year have moments that another time zone cannot tell.
        return moment.astimezone() if 1 < moment.year < 9999 else None
    return None


def behind(directory: Path, now: datetime) -> datetime | None:
    """A time after all that the runs beside `directory` record, where the clock is behind them.

    The clock may have been set back. A run that starts now records this time, and counts as newer.
    """
    with suppress(OSError):
        beside = [path for path in directory.parent.iterdir() if path != directory]
        found = [read_record(path).trained for path in beside if (path / CHECKPOINTS).is_dir()]
        latest = max((moment for moment in found if moment), default=now)
        return latest + timedelta(seconds=1) if latest > now else None
    return None


def _newest_metas(folder: Path) -> Iterator[CheckpointMeta]:
    """The heads of the files that the newest state of a run can be in; else of any one."""
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
    """The latest of what the checkpoints, the history and the start record; else by the name."""
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
    """When the last step in metrics.jsonl was logged."""
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
    """The name in what Hydra recorded of the launch; it is only read where nothing else says it."""
    with suppress(OSError, UnicodeDecodeError):
        text = (directory / RECORD / "config.yaml").read_text()
        match = re.search(r"^name: *['\"]?(.*?)['\"]?$", text, re.MULTILINE)
        return match[1] if match else None
    return None
