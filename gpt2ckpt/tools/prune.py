"""`prune`: show which files can be deleted, and delete them with --yes."""

import argparse
import contextlib
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from gpt2ckpt.checkpoint.archive_folders import ABANDONED, CORRUPT
from gpt2ckpt.checkpoint.emergency_reserve import RESERVATION
from gpt2ckpt.checkpoint.reading import check
from gpt2ckpt.errors import CheckpointError, InputError
from gpt2ckpt.files import durable
from gpt2ckpt.files.disk_usage import disk_bytes
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
from gpt2ckpt.runs.lock import RunLock, is_locked
from gpt2ckpt.runs.newest import last_trained
from gpt2ckpt.tools.command_line import Subcommand, count
from gpt2ckpt.tools.inventory import ListedCheckpoint, list_checkpoints
from gpt2ckpt.tools.prune_plan import PruneLimits, freed_bytes, plan_prune
from gpt2ckpt.tools.targets import RunPaths, add_dir, find_runs, no_runs, without_linked
from gpt2ckpt.units import human_bytes, plural

# The paths that a run creates in its directory, besides its checkpoints.
OWN_FILES = re.compile(
    "|".join(map(re.escape, (HISTORY, EVENTS, LOG, LOCK_NAME, REPLAY, LINEAGE)))
    + rf"|{CHECKPOINTS}/{ABANDONED}[^/]+/{re.escape(HISTORY)}"
    rf"|{CHECKPOINTS}/{CORRUPT}[^/]+/({'|'.join(map(re.escape, (HISTORY, REPLAY, LINEAGE)))})"
    rf"|{re.escape(RECORD)}/(resume_\d+/)?(config|hydra|overrides)\.yaml"
    rf"|{TENSORBOARD}/events\.out\.tfevents\.[^/]+"
    rf"|{WANDB}/((offline-)?run-[^/]+/.+|latest-run|debug[^/]*\.log|wandb-resume\.json)"
)
TEMPORARY = re.compile(rf"\..+\.pt\.[^/]+-\d+-[0-9a-f]{{8}}{re.escape(durable.TEMPORARY_SUFFIX)}")
ROLES = {"keep_rolling": "rolling", "keep_emergency": "emergency", "keep_epochs": "epoch"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `prune`."""
    add_dir(parser)
    for name, role in ROLES.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(
            flag, metavar="N", type=count(0), help=f"keep the last N {role} checkpoints of each run"
        )
    parser.add_argument(
        "--keep-runs",
        metavar="N",
        type=count(1),
        help="keep the N runs that saved last and delete all other runs that are not live",
    )
    parser.add_argument(
        "--abandoned",
        action="store_true",
        help="delete archived checkpoints: those later than the step of a resume",
    )
    parser.add_argument("--corrupt", action="store_true", help="delete quarantined (damaged) files")
    parser.add_argument(
        "--yes", action="store_true", help="delete; without --yes nothing is changed"
    )


def run(args: argparse.Namespace) -> int:
    """Print which files would be deleted and the space that this frees; delete with --yes."""
    runs = find_runs(args.dir)
    if not runs:
        print(no_runs(args.dir))
        return 0
    runs = without_linked(runs, args.dir)
    limits = PruneLimits(
        rolling=args.keep_rolling,
        emergency=args.keep_emergency,
        epochs=args.keep_epochs,
        abandoned=args.abandoned,
        corrupt=args.corrupt,
    )
    if limits == PruneLimits() and args.keep_runs is None:
        print("nothing is deleted: pass an option that chooses files; --help lists the options")
        return 0
    old = _old_runs(runs, args.keep_runs)
    files = freed = 0
    for paths in runs:
        if paths in old:
            gone, space = _prune_run(paths, old[paths], args.yes)
        else:
            gone, space = _prune_files(paths, limits, args.yes)
        files, freed = files + gone, freed + space
    if args.yes:
        print(f"deleted {plural(files, 'file')} and freed {human_bytes(freed)}")
    else:
        hint = ". Nothing is deleted without --yes" if files else ""
        print(f"would delete {plural(files, 'file')} and free {human_bytes(freed)}{hint}")
    return 0


def _old_runs(runs: list[RunPaths], keep: int | None) -> dict[RunPaths, datetime]:
    """Return the runs to delete, with the times of their last saves.

    The `keep` runs that saved last are not deleted. Neither are live runs and runs of unknown age.
    """
    if keep is None:
        return {}
    ages = {paths: last_trained(paths.directory, paths.folder) for paths in runs}
    dated = sorted((age, str(paths.directory), paths) for paths, age in ages.items() if age)
    unknown = len(runs) - len(dated)
    old = dated[: max(0, len(dated) + unknown - keep)]
    return {paths: age for age, _, paths in old if not is_locked(paths.directory)}


def _prune_run(paths: RunPaths, last_saved: datetime, yes: bool) -> tuple[int, int]:
    """Delete a run; return the number of its files and the bytes that they occupy.

    Files that the run did not create are kept. If the run was trained since `last_saved`, nothing
    is deleted.
    """
    checkpoints, mine = list_checkpoints(paths), _own_files(paths)
    others = [path for path in mine if path not in {checkpoint.path for checkpoint in checkpoints}]
    freed = freed_bytes(checkpoints) + disk_bytes(others)
    if yes:
        with _locked(paths):
            if last_trained(paths.directory, paths.folder) != last_saved:
                print(f"kept {paths.directory}: it was trained while this command was starting")
                return 0, 0
            left = _delete_run(paths)
    print(f"{paths.directory}: the complete run, {human_bytes(freed)}")
    if yes:
        for path in left[:3]:
            print(f"  kept {path}: the run did not create it")
        if len(left) > 3:
            print(f"  and {plural(len(left) - 3, 'more file')}")
    return len(mine), freed


def _prune_files(paths: RunPaths, limits: PruneLimits, yes: bool) -> tuple[int, int]:
    """Delete files of a run; return the number of files and the bytes that this frees."""
    is_live = is_locked(paths.directory)
    decided = plan_prune(list_checkpoints(paths), limits, _is_valid, is_live=is_live)
    if yes and decided.surplus:
        # A live run holds its lock. The plan then keeps the files that the run may be using.
        with contextlib.nullcontext() if is_live else _locked(paths):
            if not is_live:  # the run may have saved before it was locked
                decided = plan_prune(list_checkpoints(paths), limits, _is_valid, is_live=False)
            _delete(decided.surplus)
    if decided.surplus or decided.note:
        print(paths.directory)
    for checkpoint in decided.surplus:
        size = human_bytes(checkpoint.inode.size)
        print(f"  {size:>8}  {checkpoint.path.relative_to(paths.folder)}")
    if decided.note:
        print(f"  {decided.note}")
    return len(decided.surplus), freed_bytes(decided.surplus)


def _delete(checkpoints: list[ListedCheckpoint]) -> None:
    """Delete files, then the folders of archived or quarantined files that are empty."""
    if not checkpoints:
        return
    durable.delete([checkpoint.path for checkpoint in checkpoints])
    top = checkpoints[0].run.folder
    within = [checkpoint.path.relative_to(top).parents for checkpoint in checkpoints]
    folders = {top / parent for parents in within for parent in parents} - {top}
    for folder in sorted(folders, reverse=True):
        left = list(folder.iterdir())
        if {path.name for path in left} <= {HISTORY, REPLAY, LINEAGE}:
            durable.delete(left)  # the logged lines that belong to the deleted checkpoints
            folder.rmdir()


def _own_files(run: RunPaths) -> list[Path]:
    """Return the files that a run created, checkpoints first."""
    made = [checkpoint.path for checkpoint in list_checkpoints(run)]
    made += [path for path in run.folder.iterdir() if TEMPORARY.fullmatch(path.name)]
    made += run.folder.glob(RESERVATION)
    if run.folder == run.directory:  # a copied folder; the lock file is of this process
        return made + list(run.folder.glob(LOCK_NAME))
    return made + [
        path
        for path in _files_below(run.directory)
        if OWN_FILES.fullmatch(path.relative_to(run.directory).as_posix())
    ]


def _delete_run(run: RunPaths) -> list[Path]:
    """Delete the files that a run created, and directories left empty; return the other files."""
    durable.delete(_own_files(run))
    left = list(_files_below(run.directory))
    folders = [path for path in run.directory.rglob("*") if path.is_dir() and not path.is_symlink()]
    for folder in [*sorted(folders, reverse=True), run.directory]:
        if not any(folder.iterdir()):
            folder.rmdir()
    durable.sync_directory(run.directory.parent)
    return left


def _files_below(directory: Path) -> Iterator[Path]:
    """Yield every path that is not a directory, without following links."""
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path


@contextlib.contextmanager
def _locked(paths: RunPaths) -> Iterator[None]:
    """Hold the lock of a run, so that no process resumes it. Raises InputError."""
    try:
        with RunLock(paths.directory):
            durable.clean_temporaries(paths.directory)
            yield
    except OSError as error:
        where = error.filename or paths.directory
        raise InputError(
            f"{where} cannot be deleted ({error.strerror}): check its permissions with ls -ld"
        ) from error


def _is_valid(checkpoint: ListedCheckpoint) -> bool:
    try:
        check(checkpoint.path)
    except CheckpointError:
        return False
    return True


SUBCOMMAND = Subcommand(
    "free space: show what would be deleted, and delete it with --yes",
    (
        "--keep-rolling 2 --abandoned",
        "outputs/gpt2_run_20251106_143022 --keep-epochs 0 --yes",
        "outputs --keep-runs 5 --yes",
    ),
    add_arguments,
    run,
)
