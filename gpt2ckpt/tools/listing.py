"""`list`: print the checkpoints of runs, grouped, and the space that they take on disk."""

import argparse
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from gpt2ckpt.files.disk_usage import disk_bytes
from gpt2ckpt.loggers.metrics_file import to_json
from gpt2ckpt.tools import formatting
from gpt2ckpt.tools.command_line import Verb, add_json
from gpt2ckpt.tools.inventory import MOVED_AWAY, ListedCheckpoint, all_roles, list_checkpoints
from gpt2ckpt.tools.targets import DIR_HELP, find_runs, no_runs
from gpt2ckpt.units import plural

HEADINGS = ("step", "epoch", "val", "saved", "size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `list`."""
    parser.add_argument("dir", metavar="DIR", nargs="?", type=Path, help=DIR_HELP)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the list. A damaged file is a line of the list, not an error."""
    runs = [list_checkpoints(run) for run in find_runs(args.dir)]
    if args.json:
        print(
            to_json(
                [
                    _as_json(checkpoint, checkpoints)
                    for checkpoints in runs
                    for checkpoint in checkpoints
                ]
            )
        )
        return 0
    listed = [checkpoints for checkpoints in runs if checkpoints]
    for checkpoints in listed:
        print("\n".join([*_lines(checkpoints, datetime.now().astimezone()), ""]))
    if not listed:
        print(no_runs(args.dir))
    elif len(listed) > 1:
        print(f"{plural(len(listed), 'run')}, {_totals(list(chain(*listed)))}")
    return 0


def _as_json(checkpoint: ListedCheckpoint, checkpoints: list[ListedCheckpoint]) -> dict[str, Any]:
    return {
        "path": str(checkpoint.path),
        "roles": all_roles(checkpoint, checkpoints),
        "group": str(checkpoint.group),
        "step": checkpoint.step,
        "epoch": checkpoint.epoch,
        "val_loss": checkpoint.val_loss,
        "size_bytes": checkpoint.inode.size,
        "saved_at": checkpoint.meta.saved_at or None,
        "reason": checkpoint.meta.reason or None,
        "run_dir": str(checkpoint.run.directory),
        "error": checkpoint.error,
    }


def _lines(checkpoints: list[ListedCheckpoint], now: datetime) -> list[str]:
    """Return the table of one run, as narrow as its content."""
    rows = [_row(checkpoint, now) for checkpoint in checkpoints]
    cells = [HEADINGS, *(row for row in rows if row)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    longest = max(len(checkpoint.path.name) for checkpoint in checkpoints)
    indent = max(0, min(2, formatting.WIDTH - longest - sum(widths) - len(widths)))

    def line(name: str, row: tuple[str, ...]) -> str:
        right = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        return f"{' ' * indent}{name:{longest}} {' '.join(right)}"

    lines = [str(checkpoints[0].run.directory), line("", HEADINGS)]
    heading = ""
    for checkpoint, row in zip(checkpoints, rows, strict=True):
        if (wanted := _heading(checkpoint)) != heading:
            lines.append(heading := wanted)
        row_or_damage = (
            line(checkpoint.path.name, row) if row else _damaged(checkpoint, indent, longest)
        )
        lines.append(row_or_damage)
    return [*lines, _totals(checkpoints)]


def _heading(checkpoint: ListedCheckpoint) -> str:
    if checkpoint.group not in MOVED_AWAY:
        return str(checkpoint.group)
    return str(checkpoint.path.parent.relative_to(checkpoint.run.folder))


def _row(checkpoint: ListedCheckpoint, now: datetime) -> tuple[str, ...]:
    """Return the cells of a line; none if the head of the file cannot be read."""
    if checkpoint.error:
        return ()
    return (
        "-" if checkpoint.step is None else str(checkpoint.step),
        "-" if checkpoint.epoch is None else str(checkpoint.epoch),
        formatting.loss(checkpoint.val_loss),
        formatting.short_time(checkpoint.saved_at, now),
        formatting.short_bytes(checkpoint.inode.size),
    )


def _damaged(checkpoint: ListedCheckpoint, indent: int, longest: int) -> str:
    size = formatting.short_bytes(checkpoint.inode.size)
    return f"{' ' * indent}{checkpoint.path.name:{longest}} DAMAGED, {size}: verify prints why"


def _totals(checkpoints: list[ListedCheckpoint]) -> str:
    size = formatting.long_bytes(sum(checkpoint.inode.size for checkpoint in checkpoints))
    disk = formatting.long_bytes(disk_bytes(checkpoint.path for checkpoint in checkpoints))
    return f"{plural(len(checkpoints), 'checkpoint')}, {size}; on disk they take {disk}"


VERB = Verb(
    "list the checkpoints of a run or of all runs",
    ("", "outputs/gpt2_run_20251106_143022", "--json | jq '.[].path'"),
    add_arguments,
    run,
)
