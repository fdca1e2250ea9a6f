"""Find the state that `resume=WHAT` names."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from gpt2ckpt.checkpoint.archive_folders import ABANDONED, CORRUPT
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.newest_valid import Found, find_valid
from gpt2ckpt.checkpoint.reading import load_state
from gpt2ckpt.checkpoint.store import Store
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
    """Where a selector such as `latest` is searched.

    Attributes:
        outputs: The folder of runs, of which the last trained one is taken.
        given: The run directory that the user set (hydra.run.dir), instead of `outputs`.
        name: The name that the user set: only runs of this name are taken.
    """

    outputs: Path
    given: Path | None = None
    name: str | None = None


@dataclass(frozen=True)
class Place:
    """The checkpoint to read: a role or a file of a run directory.

    Attributes:
        directory: The run directory, or the folder of a file outside a run.
        role: The role to read, unless the user named a file.
        file: The file to read, if the user named it.
        in_run: False for a file or a checkpoints folder that was copied out of its run: such a
            checkpoint can only start a new run.
        skipped: Newer runs without a checkpoint, with the reason for each.
    """

    directory: Path
    role: Role | None = None
    file: Path | None = None
    in_run: bool = True
    skipped: tuple[tuple[Path, str], ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of the checkpoints."""
        inner = self.directory / CHECKPOINTS
        return inner if self.in_run else self.directory


def locate(what: str, scope: Scope, key: str = "resume") -> Place | None:
    """Return the checkpoint that `what` names, without reading it.

    Args:
        what: A selector, a run directory or a checkpoint file.
        scope: Where a selector is searched.
        key: The key that the user set to `what`, for messages; empty for a plain argument.

    Returns:
        The place; None if `auto` finds no run to resume.

    Raises:
        CheckpointError: There is no such checkpoint.
        ConfigError: `what` is neither a selector nor a path.
    """
    if what in SELECTORS:
        return _selected(what, scope, key)
    if not what.strip():
        raise ConfigError(f"{key or 'PATH'} is empty: pass {', '.join(SELECTORS)} or a path")
    path = Path(what).expanduser()
    require_access(path)
    if path.is_dir():
        return _in_directory(path)
    if path.exists():
        return _of_file(path)
    typed = f"{key}={what}" if key else what
    if "/" not in what and "." not in what:
        hint = did_you_mean(what, SELECTORS)
        raise ConfigError(
            f"{typed} is not a file, not a directory and none of {', '.join(SELECTORS)}.{hint}"
        )
    where = "" if path.is_absolute() else f" in {Path.cwd()}"
    raise CheckpointError(
        f"{typed}: there is no such file or directory{where}: pass a run directory, a checkpoint "
        f"file, or one of {', '.join(SELECTORS)}"
    )


def locate_run(path: Path) -> Place | None:
    """Return the latest checkpoint of the run whose directory or checkpoints folder `path` is.

    Returns None for a different directory.
    """
    if path.name == CHECKPOINTS:
        return Place(path.parent, Role.LATEST)
    if os.path.lexists(path / CHECKPOINTS):
        return Place(path, Role.LATEST)
    if Store(path).files():  # a checkpoints folder that was copied under a different name
        return Place(path, Role.LATEST, in_run=False)
    return None


def skipped_runs(scope: Scope) -> list[tuple[Path, str]]:
    """Return the runs without a checkpoint that `auto` skips, with the reason for each."""
    if scope.given is not None:
        return []
    return newest_run(scope.outputs, scope.name, with_jobs=False).skipped


def read(place: Place) -> Found:
    """Return the requested state, or the next best one. Raises CheckpointError if none is valid."""
    from gpt2ckpt.runs import history  # imports Hydra, which a listing does not need

    run = history.run_id_in(place.directory) if place.in_run else None
    if place.file is None:
        found = find_valid(place.folder, place.role or Role.LATEST, run)
        return replace(found, skipped=[*place.skipped, *found.skipped])
    try:
        return Found(place.file, load_state(place.file))
    except CheckpointError as error:
        if not place.in_run:
            raise
        found = find_valid(place.folder, Role.LATEST, run)
        return Found(found.path, found.state, [(place.file, str(error)), *found.skipped])


def no_run(outputs: Path, instead: str, reasons: str = "") -> CheckpointError:
    """Return the error for a selector if `outputs` holds no run; `instead` is what to do."""
    what = "holds no run" if outputs.is_dir() else "does not exist"
    what = f"holds no run with a checkpoint{reasons}" if reasons else what
    return CheckpointError(
        f"there is no checkpoint in {outputs}, since {outputs.absolute()} {what}: run the command "
        f"in the directory where the run was started, or {instead}"
    )


def no_config(path: Path) -> CheckpointError:
    """Return the error for a checkpoint without a usable config."""
    return CheckpointError(
        f"{path} does not hold the config of a run: pass a checkpoint of gpt2ckpt.train"
    )


def _selected(what: str, scope: Scope, key: str) -> Place | None:
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
    # A job script with `auto` resumes the run that it started, which is never a job of a sweep.
    newest = newest_run(scope.outputs, scope.name, with_jobs=what != AUTO)
    if newest.directory is not None:
        holds_checkpoints(newest.directory)  # raises if the folder cannot be read
        return Place(newest.directory, role, skipped=tuple(newest.skipped))
    if what == AUTO:
        return None
    other = newest_run(scope.outputs) if scope.name is not None else newest
    if other.directory is not None:
        name = read_record(other.directory).name
        raise CheckpointError(
            f"there is no checkpoint of a run with name={scope.name} in {scope.outputs}, and the "
            f"newest run there, {other.directory}, has name={name}: {instead}"
        )
    reasons = "".join(f" ({path}: {reason})" for path, reason in newest.skipped)
    raise no_run(scope.outputs, instead, reasons)


def _in_directory(path: Path) -> Place:
    """Return the latest checkpoint of the run in `path`, or of the only run below it.

    Raises CheckpointError for a folder of several runs, or of archived or quarantined files.
    """
    if path.name.startswith((ABANDONED, CORRUPT)):
        raise CheckpointError(
            f"{path} holds archived or quarantined files of a run: name one of them"
        )
    if place := locate_run(path):
        return place
    runs = [run for run, _ in run_directories(path) if holds_checkpoints(run)]
    if len(runs) > 1:
        raise CheckpointError(f"{path} holds {len(runs)} runs: name one of them")
    return Place(runs[0] if runs else path, Role.LATEST)


def _of_file(file: Path) -> Place:
    folder = file.absolute().parent  # not resolved, because checkpoints/ may be a link
    while folder.name.startswith(ABANDONED):
        folder = folder.parent
    if folder.name != CHECKPOINTS:
        return Place(folder, file=file, in_run=False)
    return Place(folder.parent, file=file)
