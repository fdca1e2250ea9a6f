"""What DIR and PATH on the command line stand for. Nothing here reads a tensor."""

import sys
from dataclasses import dataclass
from pathlib import Path

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.archive_folders import ABANDONED, CORRUPT
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.reading import read_meta
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError, InputError
from gpt2ckpt.files.permissions import access_error, require_access, unreadable_message
from gpt2ckpt.runs.layout import CHECKPOINTS, OUTPUTS
from gpt2ckpt.runs.newest import run_directories
from gpt2ckpt.runs.resume import SELECTORS, Scope, locate, locate_run, no_run

DIR_HELP = "a run, its checkpoints folder, or a folder with runs in it (default: outputs)"
PATH_HELP = (
    f"a file, a run directory (its latest), or {', '.join(SELECTORS)} of the newest run in outputs"
)


@dataclass(frozen=True)
class Run:
    """A run directory and its checkpoints folder."""

    directory: Path
    folder: Path


def find_runs(where: Path | None) -> list[Run]:
    """The run in `where`, or every run below it, by name; without `where`, those in outputs.

    Raises InputError if there is no such directory.
    """
    if where is None:
        return _below(OUTPUTS)
    require_access(where)
    if not where.is_dir():
        problem = "is a file, and a directory is needed" if where.exists() else "does not exist"
        raise InputError(f"{where} {problem}: give {DIR_HELP}")
    if where.name.startswith((ABANDONED, CORRUPT)) and where.parent.name == CHECKPOINTS:
        where = where.parent
    if (place := locate_run(where)) and place.folder.is_dir():
        require_access(place.folder)
        return [Run(place.directory, place.folder)]
    return _below(where)


def without_linked(runs: list[Run], where: Path | None) -> list[Run]:
    """Those of `runs` that lie where they seem to lie, for verbs that delete or replace files.

    A link that the user did not name is not followed; each is said, with what to name instead.
    """
    kept = []
    for run in runs:
        linked = [path for path in (run.directory, run.folder) if path.is_symlink()]
        if any(path != where for path in linked):
            print(f"{linked[-1]}: left alone, it is a link: name {linked[-1].resolve()} itself")
        else:
            kept.append(run)
    return kept


def no_runs(where: Path | None) -> str:
    """The sentence for an empty result of `find_runs`."""
    return f"there are no checkpoints in {where or OUTPUTS}"


def checkpoint_named(what: str) -> Path:
    """The checkpoint that PATH stands for; where one of a role is damaged, the next best.

    What is passed over is printed on stderr. Raises CheckpointError if there is none, ConfigError
    for a word that means nothing.
    """
    place = locate(what, Scope(OUTPUTS), key="")
    if place is None:
        raise no_run(OUTPUTS, "name a run directory or a file")
    for path, reason in place.skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    return place.file or _of_role(Run(place.directory, place.folder), place.role or Role.LATEST)


def _of_role(run: Run, role: Role) -> Path:
    store = Store(run.folder)
    if not any(names.role_of(path.name) is role for path in store.files()):
        raise CheckpointError(f"there is no {role} checkpoint in {run.folder}")
    reasons = []
    for path in store.candidates(role):
        try:
            read_meta(path)
        except CheckpointError as error:
            print(f"skipped {error}", file=sys.stderr)
            reasons.append(str(error))
        else:
            return path
    raise CheckpointError(f"no readable checkpoint is left in {run.folder}: {'; '.join(reasons)}")


def _below(root: Path) -> list[Run]:
    """Every run below `root` with a checkpoints folder, by name.

    One that this user cannot read is printed on stderr, and left out.
    """
    runs = []
    for directory, _ in sorted(run_directories(root)):
        folder = directory / CHECKPOINTS
        if error := access_error(directory) or access_error(folder):
            print(f"skipped {unreadable_message(error.filename, error)}", file=sys.stderr)
        elif folder.is_dir():
            runs.append(Run(directory, folder))
    return runs
