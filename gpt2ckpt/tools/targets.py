"""Finds the runs and checkpoints that the arguments DIR and PATH name."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.archive_folders import ABANDONED, CORRUPT
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.newest_valid import candidates
from gpt2ckpt.checkpoint.reading import read_meta
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError, InputError
from gpt2ckpt.files.permissions import access_error, require_access, unreadable_message
from gpt2ckpt.runs.layout import CHECKPOINTS, OUTPUTS
from gpt2ckpt.runs.newest import run_directories
from gpt2ckpt.runs.resume import AUTO, SELECTORS, Scope, locate, locate_run, no_run

ROLES = [name for name in SELECTORS if name != AUTO]  # auto is for job scripts
DIR_HELP = "a run, its checkpoints folder, or a folder with runs in it (default: outputs)"
PATH_HELP = (
    "a checkpoint file, a run directory (its latest checkpoint), or a role in the newest run of "
    f"outputs: {', '.join(ROLES)}"
)


def add_dir(parser: argparse.ArgumentParser) -> None:
    """Add the optional argument DIR, for `find_runs`."""
    parser.add_argument("dir", metavar="DIR", nargs="?", type=Path, help=DIR_HELP)


def add_path(parser: argparse.ArgumentParser) -> None:
    """Add the argument PATH, for `checkpoint_named`."""
    parser.add_argument("path", metavar="PATH", help=PATH_HELP)


@dataclass(frozen=True)
class RunPaths:
    """A run directory and its checkpoints folder."""

    directory: Path
    folder: Path


def find_runs(where: Path | None) -> list[RunPaths]:
    """Return the run in `where`, or all runs below it by name; `where` is outputs by default.

    Raises:
        InputError: if there is no such directory.
    """
    if where is None:
        return _below(OUTPUTS)
    require_access(where)
    if not where.is_dir():
        problem = "is not a directory" if where.exists() else "does not exist"
        raise InputError(f"{where} {problem}: pass {DIR_HELP}")
    if where.name.startswith((ABANDONED, CORRUPT)) and where.parent.name == CHECKPOINTS:
        where = where.parent
    if (place := locate_run(where)) and place.folder.is_dir():
        require_access(place.folder)
        return [RunPaths(place.directory, place.folder)]
    return _below(where)


def without_linked(runs: list[RunPaths], where: Path | None) -> list[RunPaths]:
    """Return the runs that are not symbolic links, for subcommands that delete or replace files.

    A link is followed only if the user named it; every other link is reported.
    """
    kept = []
    for run in runs:
        linked = [path for path in (run.directory, run.folder) if path.is_symlink()]
        if any(path != where for path in linked):
            print(
                f"skipped {linked[-1]}: it is a symbolic link. Pass {linked[-1].resolve()} instead"
            )
        else:
            kept.append(run)
    return kept


def no_runs(where: Path | None) -> str:
    """Return the message for an empty result of `find_runs`."""
    if where is None and not OUTPUTS.is_dir():
        return (
            f"there are no checkpoints in {OUTPUTS}, since {OUTPUTS.absolute()} does not exist: "
            "run the command in the directory where the runs were started, or pass a directory"
        )
    return f"there are no checkpoints in {where or OUTPUTS}"


def checkpoint_named(what: str) -> Path:
    """Return the checkpoint that PATH names, or the next best if the head of that file is damaged.

    Skipped files are reported on stderr.

    Raises:
        CheckpointError: if there is no readable checkpoint.
        ConfigError: if PATH is neither a path nor a selector.
    """
    place = locate(what, Scope(OUTPUTS), key="")
    if place is None:
        raise no_run(OUTPUTS, "pass a run directory or a checkpoint file")
    for path, reason in place.skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    return place.file or checkpoint_of_role(
        RunPaths(place.directory, place.folder), place.role or Role.LATEST
    )


def checkpoint_of_role(run: RunPaths, role: Role) -> Path:
    """Return the checkpoint of a role; if the head of that file is damaged, the next best.

    Skipped files are printed on stderr. Raises CheckpointError if there is no readable one.
    """
    if not any(names.role_of(path.name) is role for path in Store(run.folder).files()):
        raise CheckpointError(
            f"there is no {role} checkpoint in {run.folder}: choose one that `list` shows"
        )
    reasons = []
    for path in candidates(run.folder, role):
        try:
            read_meta(path)
        except CheckpointError as error:
            print(f"skipped {error}", file=sys.stderr)
            reasons.append(str(error))
        else:
            return path
    raise CheckpointError(f"no checkpoint in {run.folder} is readable: {'; '.join(reasons)}")


def _below(root: Path) -> list[RunPaths]:
    """Return every run below `root` with a checkpoints folder, by name.

    A run that this user cannot read is skipped and reported on stderr.
    """
    runs = []
    for directory, _ in sorted(run_directories(root)):
        folder = directory / CHECKPOINTS
        if error := access_error(directory) or access_error(folder):
            print(f"skipped {unreadable_message(error.filename, error)}", file=sys.stderr)
        elif folder.is_dir():
            runs.append(RunPaths(directory, folder))
    return runs
