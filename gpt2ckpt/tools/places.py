"""What DIR and PATH on the command line stand for. Nothing here reads a tensor."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.aside import ABANDONED, CORRUPT
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.reading import read_meta
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError, ConfigError, InputError, did_you_mean
from gpt2ckpt.runs.layout import CHECKPOINTS, OUTPUTS, TENSORBOARD, WANDB
from gpt2ckpt.runs.resume import SELECTORS, newest_run, no_run

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
    if not where.is_dir():
        problem = "is a file, and a directory is needed" if where.exists() else "does not exist"
        raise InputError(f"{where} {problem}: give {DIR_HELP}")
    if where.name.startswith((ABANDONED, CORRUPT)) and where.parent.name == CHECKPOINTS:
        where = where.parent
    if where.name == CHECKPOINTS:
        return [Run(where.parent, where)]
    if (where / CHECKPOINTS).is_dir():
        return [Run(where, where / CHECKPOINTS)]
    if Store(where).files():  # a checkpoints folder that was copied under another name
        return [Run(where, where)]
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

    What is passed over is said on stderr. Raises CheckpointError if there is none.
    """
    path = Path(what).expanduser()
    if what in SELECTORS:
        directory = newest_run(OUTPUTS)
        if directory is None:
            raise no_run(OUTPUTS, "name a run directory or a file")
        return _of_role(Run(directory, directory / CHECKPOINTS), SELECTORS[what])
    if path.is_dir():
        runs = find_runs(path)
        if len(runs) == 1:
            return _of_role(runs[0], Role.LATEST)
        found = f"{len(runs)} runs: name one of them" if runs else "no checkpoints"
        raise CheckpointError(f"{path} holds {found}")
    if not path.exists():
        raise no_such_place(what)
    return path


def no_such_place(what: str) -> CheckpointError | ConfigError:
    """The error for a word that is no path: one without a slash may be a misspelt selector."""
    if "/" in what or "." in what:
        return CheckpointError(f"there is no file or directory {what}")
    hint = did_you_mean(what, SELECTORS)
    return ConfigError(f"{what} is no file, no directory and none of {', '.join(SELECTORS)}.{hint}")


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
    """Every directory below `root` with a checkpoints folder; linked ones too, each once."""
    found: dict[Path, Run] = {}
    for parent, inner, _ in os.walk(root):
        directory = Path(parent)
        if (directory / CHECKPOINTS).is_dir():
            found[directory.resolve()] = Run(directory, directory / CHECKPOINTS)
        for name in inner:
            linked = directory / name
            if linked.is_symlink() and (linked / CHECKPOINTS).is_dir():
                found.setdefault(linked.resolve(), Run(linked, linked / CHECKPOINTS))
        inner[:] = [name for name in inner if name not in (CHECKPOINTS, WANDB, TENSORBOARD)]
    return sorted(found.values(), key=lambda run: run.directory)
