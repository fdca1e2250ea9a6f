"""Finding the state that `resume=WHAT` means."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2ckpt.checkpoint.archive_folders import ABANDONED, CORRUPT
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.reading import load
from gpt2ckpt.checkpoint.store import Found, Store
from gpt2ckpt.errors import CheckpointError, ConfigError, did_you_mean
from gpt2ckpt.files.permissions import require_access
from gpt2ckpt.runs.claim import holds_checkpoints
from gpt2ckpt.runs.layout import CHECKPOINTS
from gpt2ckpt.runs.newest import newest_run, read_record, run_directories

AUTO = "auto"
SELECTORS = {
    "latest": Role.LATEST,
    "best": Role.BEST,
    "best_previous": Role.BEST_PREVIOUS,
    "emergency": Role.EMERGENCY,
    "latest_backup": Role.LATEST_BACKUP,
    AUTO: Role.LATEST,
}


@dataclass(frozen=True)
class Scope:
    """Where a word such as latest is looked for.

    In the directory `given` (hydra.run.dir) if the user gave it; else in the run below `outputs`
    that was trained last, if the user gave a `name`, of those that are called so.
    """

    outputs: Path
    given: Path | None = None
    name: str | None = None


@dataclass(frozen=True)
class Place:
    """Where to look: a run directory, and the role or the one file that is asked for.

    A file that lies in no run (`in_run` false), copied somewhere by hand, can only start a new one;
    so can a copy of a checkpoints folder, which is its own `directory`. `skipped` are newer
    runs that hold no checkpoint.
    """

    directory: Path
    role: Role | None = None
    file: Path | None = None
    in_run: bool = True
    skipped: tuple[tuple[Path, str], ...] = ()

    @property
    def folder(self) -> Path:
        """The folder that holds the checkpoints."""
        inner = self.directory / CHECKPOINTS
        return inner if self.in_run else self.directory


def locate(what: str, scope: Scope, key: str = "resume") -> Place | None:
    """What `what` names, without reading a checkpoint; None if `auto` finds nothing to resume.

    `key` is what the user typed `what` for; empty for a word that stands alone.

    Raises CheckpointError if there is no such thing, ConfigError for a word that means nothing.
    """
    if what in SELECTORS:
        return _selected(what, scope, key)
    if not what.strip():
        raise ConfigError(f"{key or 'PATH'} is empty: it takes {', '.join(SELECTORS)} or a path")
    path = Path(what).expanduser()
    require_access(path)
    if path.is_dir():
        return _in_directory(path)
    if path.exists():
        return _place_of(path)
    typed = f"{key}={what}" if key else what
    if "/" not in what and "." not in what:
        hint = did_you_mean(what, SELECTORS)
        raise ConfigError(
            f"{typed} is not a file, not a directory and none of {', '.join(SELECTORS)}.{hint}"
        )
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    raise CheckpointError(
        f"{typed}: there is no such file or directory{where}: give a run directory, a checkpoint "
        f"file, or one of {', '.join(SELECTORS)}"
    )


def skipped_runs(scope: Scope) -> list[tuple[Path, str]]:
    """Runs without a checkpoint, each with the reason, where `auto` finds nothing to resume."""
    if scope.given is not None:
        return []
    return newest_run(scope.outputs, scope.name, with_jobs=False).skipped


def _selected(what: str, scope: Scope, key: str) -> Place | None:
    """The place of a selector."""
    role, instead = SELECTORS[what], "name a run directory or a checkpoint file"
    instead += f" with {key}=PATH" if key else ""
    instead += ", or leave resume out to start a new run" if key == "resume" else ""
    if scope.given is not None:
        if holds_checkpoints(scope.given):
            return Place(scope.given, role)
        if what == AUTO:
            return None
        full = "" if scope.given.is_absolute() else f" ({scope.given.absolute()})"
        raise CheckpointError(f"there is no checkpoint in {scope.given}{full}: {instead}")
    # A job script that asks for `auto` goes on with what it started; a sweep is no part of that.
    newest = newest_run(scope.outputs, scope.name, with_jobs=what != AUTO)
    if newest.directory is not None:
        holds_checkpoints(newest.directory)  # raises if that cannot be known
        return Place(newest.directory, role, skipped=tuple(newest.skipped))
    if what == AUTO:
        return None
    other = newest_run(scope.outputs) if scope.name is not None else newest
    if other.directory is not None:
        called = read_record(other.directory).name
        raise CheckpointError(
            f"there is no checkpoint of a run with name={scope.name} in {scope.outputs}, and the "
            f"newest run there, {other.directory}, has name={called}: {instead}"
        )
    reasons = "".join(f" ({path}: {reason})" for path, reason in newest.skipped)
    raise no_run(scope.outputs, instead, reasons)


def _in_directory(path: Path) -> Place:
    """The newest state of a run directory, or of the only run in a folder.

    Raises CheckpointError for a folder with several runs, or of abandoned or damaged files.
    """
    if path.name == CHECKPOINTS:
        return Place(path.parent, Role.LATEST)
    if path.name.startswith((ABANDONED, CORRUPT)):
        raise CheckpointError(f"{path} holds files that a run left behind: name one of them")
    if os.path.lexists(path / CHECKPOINTS):
        return Place(path, Role.LATEST)
    if Store(path).files():  # a checkpoints folder that was copied under another name
        return Place(path, Role.LATEST, in_run=False)
    runs = [run for run, _ in run_directories(path) if holds_checkpoints(run)]
    if len(runs) > 1:
        raise CheckpointError(f"{path} holds {len(runs)} runs: name one of them")
    return Place(runs[0] if runs else path, Role.LATEST)


def read(place: Place) -> Found:
    """The valid state nearest to what was asked for. Raises CheckpointError if there is none."""
    from gpt2ckpt.runs import history  # imports Hydra, which those who list runs do without

    store = Store(place.folder)
    run = history.run_id_in(place.directory) if place.in_run else None
    if place.file is None:
        found = store.find(place.role or Role.LATEST, run)
        return replace(found, skipped=[*place.skipped, *found.skipped])
    try:
        return Found(place.file, load(place.file))
    except CheckpointError as error:
        if not place.in_run:
            raise
        found = store.find(Role.LATEST, run)
        return Found(found.path, found.state, [(place.file, str(error)), *found.skipped])


def no_run(outputs: Path, instead: str, reasons: str = "") -> CheckpointError:
    """The error where a name such as latest can mean nothing; `instead` is what else to do."""
    what = "holds no run" if outputs.is_dir() else "does not exist"
    what = f"holds no run with a checkpoint{reasons}" if reasons else what
    return CheckpointError(
        f"there is no checkpoint in {outputs}, since {outputs.absolute()} {what}: give the command "
        f"where the run was started, or {instead}"
    )


def _place_of(file: Path) -> Place:
    folder = file.absolute().parent  # links are kept: checkpoints/ may be one
    while folder.name.startswith(ABANDONED):
        folder = folder.parent
    if folder.name != CHECKPOINTS:
        return Place(folder, file=file, in_run=False)
    return Place(folder.parent, file=file)
