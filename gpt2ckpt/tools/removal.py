"""Removing a whole run: every file that a run makes, and none that somebody else put there."""

import re
from collections.abc import Iterator
from pathlib import Path

from gpt2ckpt.checkpoint.archive_folders import ABANDONED, CORRUPT
from gpt2ckpt.checkpoint.reservation import RESERVATION
from gpt2ckpt.files import durable
from gpt2ckpt.runs.layout import (
    CHECKPOINTS,
    EVENTS,
    HISTORY,
    LINEAGE,
    LOCK_NAME,
    LOG,
    RECORD,
    REPLAY,
    TENSORBOARD,
    WANDB,
)
from gpt2ckpt.tools.inventory import scan
from gpt2ckpt.tools.targets import Run

# Paths within a run directory, besides its checkpoints.
OURS = re.compile(
    "|".join(map(re.escape, (HISTORY, EVENTS, LOG, LOCK_NAME, REPLAY, LINEAGE)))
    + rf"|{CHECKPOINTS}/{ABANDONED}[^/]+/{re.escape(HISTORY)}"
    rf"|{CHECKPOINTS}/{CORRUPT}[^/]+/({'|'.join(map(re.escape, (HISTORY, REPLAY, LINEAGE)))})"
    rf"|{re.escape(RECORD)}/(resume_\d+/)?(config|hydra|overrides)\.yaml"
    rf"|{TENSORBOARD}/events\.out\.tfevents\.[^/]+"
    rf"|{WANDB}/((offline-)?run-[^/]+/.+|latest-run|debug[^/]*\.log|wandb-resume\.json)"
)
TEMPORARY = re.compile(rf"\..+\.pt\.[^/]+-\d+-[0-9a-f]{{8}}{re.escape(durable.TEMPORARY_SUFFIX)}")


def own_files(run: Run) -> list[Path]:
    """The files of a run that the run made, checkpoints first."""
    made = [entry.path for entry in scan(run)]
    made += [path for path in run.folder.iterdir() if TEMPORARY.fullmatch(path.name)]
    made += run.folder.glob(RESERVATION)
    if run.folder == run.directory:  # a copy of a checkpoints folder, and the lock that we took
        return made + list(run.folder.glob(LOCK_NAME))
    return made + [
        path
        for path in _files_below(run.directory)
        if OURS.fullmatch(path.relative_to(run.directory).as_posix())
    ]


def remove(run: Run) -> list[Path]:
    """Delete the own files of a run and every directory that is empty then.

    Returns the files that somebody else put there: they stay. Raises OSError.
    """
    durable.delete(own_files(run))
    left = list(_files_below(run.directory))
    folders = [path for path in run.directory.rglob("*") if path.is_dir() and not path.is_symlink()]
    for folder in [*sorted(folders, reverse=True), run.directory]:
        if not any(folder.iterdir()):
            folder.rmdir()
    durable.sync_directory(run.directory.parent)
    return left


def _files_below(directory: Path) -> Iterator[Path]:
    """All that is no directory; links are not followed."""
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path
