"""`repair`: replace corrupt files by verified copies of the same state."""

import argparse
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path

from gpt2ckpt.checkpoint.event_sink import NO_EVENTS, EventSink
from gpt2ckpt.checkpoint.repair import RepairResult, diagnose
from gpt2ckpt.checkpoint.repair import repair as mend
from gpt2ckpt.errors import UserError
from gpt2ckpt.runs.events import EventLog
from gpt2ckpt.runs.lock import RunLock
from gpt2ckpt.tools.command_line import Verb
from gpt2ckpt.tools.targets import DIR_HELP, RunPaths, find_runs, no_runs, without_linked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `repair`."""
    parser.add_argument("dir", metavar="DIR", nargs="?", type=Path, help=DIR_HELP)


def run(args: argparse.Namespace) -> int:
    """Repair every run; return 1 if a corrupt file is left."""
    runs = find_runs(args.dir)
    if not runs:
        print(no_runs(args.dir))
    runs = without_linked(runs, args.dir)
    return max([_repair_run(run) for run in runs], default=0)


def _repair_run(run: RunPaths) -> int:
    """Repair a run; return 1 if a corrupt file is left. A run without one is not locked."""
    found = diagnose(run.folder)
    if not found.corrupt:
        print(f"{run.folder}: nothing is corrupt")
        return 0
    try:
        with RunLock(run.directory), _events_of(run) as events:
            mended = mend(run.folder, diagnose(run.folder), datetime.now(), events=events)
    except UserError as error:
        print(f"{run.folder}: not repaired: {error}")
        return 1
    except OSError as error:
        print(f"{run.folder}: not repaired: {error.strerror}: {error.filename or ''}".rstrip(": "))
        return 1
    for line in (line for item in mended for line in _lines(item)):
        print(line)
    return 1 if any(item.source is None for item in mended) else 0


def _events_of(run: RunPaths) -> AbstractContextManager[EventSink]:
    """Return the events of a run; a copied checkpoints folder is not a run, and gets none."""
    return nullcontext(NO_EVENTS) if run.folder == run.directory else EventLog(run.directory)


def _lines(item: RepairResult) -> list[str]:
    """Return a line for each name of a corrupt file."""
    if item.source is None:
        reason = "NOT REPAIRED: no valid copy of its state is left; the file stays in place"
        return [f"{name} {reason}" for name in item.corrupt.names]
    lines = [f"{name} repaired from {item.source.name}" for name in item.corrupt.names]
    return [*lines, f"  the corrupt file is kept in {item.folder} until prune --corrupt"]


VERB = Verb(
    "replace corrupt files by verified copies of the same state",
    ("", "outputs/gpt2_run_20251106_143022"),
    add_arguments,
    run,
)
