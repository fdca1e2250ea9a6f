"""`prune`: free space; shows what would go, and deletes only with --yes."""

import argparse
import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from gpt2ckpt.checkpoint.reading import check
from gpt2ckpt.errors import CheckpointError, InputError
from gpt2ckpt.files import durable
from gpt2ckpt.files.disk_usage import disk_bytes
from gpt2ckpt.runs.layout import HISTORY, LINEAGE, REPLAY
from gpt2ckpt.runs.lock import RunLock, is_locked
from gpt2ckpt.runs.newest import last_trained
from gpt2ckpt.tools import formatting
from gpt2ckpt.tools.command_line import Verb, count
from gpt2ckpt.tools.inventory import ListedCheckpoint, scan
from gpt2ckpt.tools.pruning import Limits, freed_bytes, plan_prune
from gpt2ckpt.tools.removal import own_files, remove
from gpt2ckpt.tools.targets import DIR_HELP, Run, find_runs, no_runs, without_linked
from gpt2ckpt.units import plural

POOLS = {"keep_rolling": "rolling", "keep_emergency": "emergency", "keep_epochs": "epoch"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of `prune`."""
    parser.add_argument("dir", metavar="DIR", nargs="?", type=Path, help=DIR_HELP)
    for name, pool in POOLS.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(
            flag, metavar="N", type=count(0), help=f"keep the last N {pool} checkpoints of each run"
        )
    parser.add_argument(
        "--keep-runs",
        metavar="N",
        type=count(1),
        help="keep the N runs that saved last; older ones go as a whole, but never a live one",
    )
    parser.add_argument("--abandoned", action="store_true", help="states that a resume abandoned")
    parser.add_argument("--corrupt", action="store_true", help="what repair set aside")
    parser.add_argument("--yes", action="store_true", help="delete; without it nothing is touched")


def run(args: argparse.Namespace) -> int:
    """Show what goes and how much disk that frees; delete it if asked to."""
    runs = find_runs(args.dir)
    if not runs:
        print(no_runs(args.dir))
        return 0
    runs = without_linked(runs, args.dir)
    limits = Limits(
        rolling=args.keep_rolling,
        emergency=args.keep_emergency,
        epochs=args.keep_epochs,
        abandoned=args.abandoned,
        corrupt=args.corrupt,
    )
    if limits == Limits() and args.keep_runs is None:
        print("nothing was named that may go: --help lists what can be")
        return 0
    old = _old_runs(runs, args.keep_runs)
    files = freed = 0
    for item in runs:
        if item in old:
            gone, space = _prune_whole(item, old[item], args.yes)
        else:
            gone, space = _prune_pools(item, limits, args.yes)
        files, freed = files + gone, freed + space
    done = "deleted" if args.yes else "would go:"
    hint = "" if args.yes or not files else ". Nothing is deleted without --yes"
    print(
        f"{done} {plural(files, 'file')}, {formatting.long_bytes(freed)} of disk"
        f"{' freed' if args.yes else ''}{hint}"
    )
    return 0


def _old_runs(runs: list[Run], keep: int | None) -> dict[Run, datetime]:
    """The runs beyond the `keep` that saved last, without live ones and those of unknown age.

    Each with the moment of its last save.
    """
    if keep is None:
        return {}
    ages = {item: last_trained(item.directory, item.folder) for item in runs}
    dated = sorted((age, str(item.directory), item) for item, age in ages.items() if age)
    unknown = len(runs) - len(dated)
    old = dated[: max(0, len(dated) + unknown - keep)]
    return {item: age for age, _, item in old if not is_locked(item.directory)}


def _prune_whole(item: Run, last_saved: datetime, yes: bool) -> tuple[int, int]:
    """Remove a run: how many files, and bytes of disk. Files of other people stay.

    So does the run if another process has trained it since it `last_saved`.
    """
    entries, mine = scan(item), own_files(item)
    others = [path for path in mine if path not in {entry.path for entry in entries}]
    freed = freed_bytes(entries) + disk_bytes(others)
    if yes:
        with _locked(item):
            if last_trained(item.directory, item.folder) != last_saved:
                print(f"{item.directory} stays: it was trained while this command was starting")
                return 0, 0
            left = remove(item)
    print(f"{item.directory}: the whole run, {formatting.long_bytes(freed)}")
    if yes:
        for path in left[:3]:
            print(f"  {path} stays: the run did not make it")
        if len(left) > 3:
            print(f"  so do {plural(len(left) - 3, 'other file')}")
    return len(mine), freed


def _prune_pools(item: Run, limits: Limits, yes: bool) -> tuple[int, int]:
    """Prune the pools of a run: how many files, and bytes of disk."""
    is_live = is_locked(item.directory)
    decided = plan_prune(scan(item), limits, _is_valid, is_live=is_live)
    if yes and decided.surplus:
        # A live run holds the lock; the plan has left it what it may be working with.
        with contextlib.nullcontext() if is_live else _locked(item):
            if not is_live:  # a run may have saved, or gone back, until it was locked
                decided = plan_prune(scan(item), limits, _is_valid, is_live=False)
            _delete(decided.surplus)
    if decided.surplus or decided.note:
        print(item.directory)
    for entry in decided.surplus:
        size = formatting.long_bytes(entry.inode.size)
        print(f"  {size:>7}  {entry.path.relative_to(item.folder)}")
    if decided.note:
        print(f"  {decided.note}")
    return len(decided.surplus), freed_bytes(decided.surplus)


def _delete(entries: list[ListedCheckpoint]) -> None:
    """Delete files, and the folders of what was set aside once these are empty."""
    if not entries:
        return
    durable.delete([entry.path for entry in entries])
    top = entries[0].run.folder
    within = [path.relative_to(top).parents for entry in entries for path in [entry.path]]
    for folder in sorted({top / parent for parents in within for parent in parents}, reverse=True):
        left = list(folder.iterdir()) if folder != top else []
        if left and {path.name for path in left} <= {HISTORY, REPLAY, LINEAGE}:
            durable.delete(left)  # what was logged of the checkpoints that are gone
        if folder != top and not any(folder.iterdir()):
            folder.rmdir()


@contextlib.contextmanager
def _locked(item: Run) -> Iterator[None]:
    """Hold the lock of a run, so that nothing resumes it meanwhile. Raises InputError."""
    try:
        with RunLock(item.directory):
            durable.clean_temporaries(item.directory)
            yield
    except OSError as error:
        where = error.filename or item.directory
        raise InputError(f"{where} cannot be deleted: {error.strerror}") from error


def _is_valid(entry: ListedCheckpoint) -> bool:
    try:
        check(entry.path)
    except CheckpointError:
        return False
    return True


VERB = Verb(
    "free space: show what would go, and delete it with --yes",
    (
        "--keep-rolling 2 --abandoned",
        "outputs/gpt2_run_20251106_143022 --keep-epochs 0 --yes",
        "outputs --keep-runs 5 --yes",
    ),
    add_arguments,
    run,
)
