"""`repair`: replace corrupt files by verified copies."""

import argparse
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime

from gpt2ckpt.checkpoint.event_sink import NO_EVENTS, EventSink
from gpt2ckpt.checkpoint.repair import RepairResult, diagnose
from gpt2ckpt.checkpoint.repair import repair as repair_folder
from gpt2ckpt.errors import UserError
from gpt2ckpt.runs.events import EventLog
from gpt2ckpt.runs.lock import RunLock
from gpt2ckpt.tools.command_line import Subcommand
from gpt2ckpt.tools.targets import RunPaths, add_dir, find_runs, no_runs, without_linked


def run(args: argparse.Namespace) -> int:
    """Repair every run; return 1 if a corrupt file is not repaired."""
    runs = find_runs(args.dir)
    if not runs:
        print(no_runs(args.dir))
    runs = without_linked(runs, args.dir)
    return max([_repair_run(run) for run in runs], default=0)


def _repair_run(run: RunPaths) -> int:
    """Lock and repair a run with corrupt files; return 1 if one is not repaired."""
    found = diagnose(run.folder)
    if not found.corrupt:
        print(f"{run.folder}: nothing is corrupt")
        return 0
    try:
        with RunLock(run.directory), _events_of(run) as events:
            repaired = repair_folder(
                run.folder, diagnose(run.folder), datetime.now(), events=events
            )
    except UserError as error:
        print(f"{run.folder}: not repaired: {error}")
        return 1
    except OSError as error:
        print(f"{run.folder}: not repaired: {error.strerror}: {error.filename or ''}".rstrip(": "))
        return 1
    for line in (line for item in repaired for line in _lines(item)):
        print(line)
    return 1 if any(item.source is None for item in repaired) else 0


def _events_of(run: RunPaths) -> AbstractContextManager[EventSink]:
    """Return the event log of a run; a copied checkpoints folder is not a run and has none."""
    return nullcontext(NO_EVENTS) if run.folder == run.directory else EventLog(run.directory)


def _lines(item: RepairResult) -> list[str]:
    """Return a line for each name of a corrupt file."""
    if item.source is None:
        reason = "NOT REPAIRED: there is no valid copy of it. Restore it from a backup"
        return [f"{name} {reason}" for name in item.corrupt.names]
    lines = [f"{name} repaired from {item.source.name}" for name in item.corrupt.names]
    return [*lines, f"  the corrupt file is kept in {item.folder}; prune --corrupt deletes it"]


SUBCOMMAND = Subcommand(
    "replace corrupt files by verified copies",
    ("", "outputs/gpt2_run_20251106_143022"),
    add_dir,
    run,
)
