"""`list`: the checkpoints of runs, grouped, with what they take on disk."""

import argparse
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from gpt2ckpt.files.disk_usage import disk_bytes
from gpt2ckpt.loggers.metrics_file import to_json
from gpt2ckpt.tools import formatting
from gpt2ckpt.tools.command_line import Verb, add_json
from gpt2ckpt.tools.inventory import ListedCheckpoint, ListGroup, all_roles, scan
from gpt2ckpt.tools.targets import DIR_HELP, find_runs, no_runs
from gpt2ckpt.units import plural

HEADINGS = ("step", "epoch", "val", "saved", "size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of `list`."""
    parser.add_argument("dir", metavar="DIR", nargs="?", type=Path, help=DIR_HELP)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the list. A damaged file is one of its lines, not an error."""
    runs = [scan(run) for run in find_runs(args.dir)]
    if args.json:
        print(to_json([_as_json(entry, entries) for entries in runs for entry in entries]))
        return 0
    listed = [entries for entries in runs if entries]
    for entries in listed:
        print("\n".join([*_lines(entries, datetime.now().astimezone()), ""]))
    if not listed:
        print(no_runs(args.dir))
    elif len(listed) > 1:
        print(f"{plural(len(listed), 'run')}, {_totals(list(chain(*listed)))}")
    return 0


def _as_json(entry: ListedCheckpoint, entries: list[ListedCheckpoint]) -> dict[str, Any]:
    return {
        "path": str(entry.path),
        "roles": all_roles(entry, entries),
        "group": str(entry.group),
        "step": entry.step,
        "epoch": entry.epoch,
        "val_loss": entry.val_loss,
        "size_bytes": entry.inode.size,
        "saved_at": entry.meta.saved_at or None,
        "reason": entry.meta.reason or None,
        "run_dir": str(entry.run.directory),
        "error": entry.error,
    }


def _lines(entries: list[ListedCheckpoint], now: datetime) -> list[str]:
    """The table of one run, as narrow as its content."""
    rows = [_row(entry, now) for entry in entries]
    cells = [HEADINGS, *(row for row in rows if row)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    longest = max(len(entry.path.name) for entry in entries)
    indent = max(0, min(2, formatting.WIDTH - longest - sum(widths) - len(widths)))

    def line(name: str, row: tuple[str, ...]) -> str:
        right = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        return f"{' ' * indent}{name:{longest}} {' '.join(right)}"

    lines = [str(entries[0].run.directory), line("", HEADINGS)]
    heading = ""
    for entry, row in zip(entries, rows, strict=True):
        if (wanted := _heading(entry)) != heading:
            lines.append(heading := wanted)
        row_or_damage = line(entry.path.name, row) if row else _damaged(entry, indent, longest)
        lines.append(row_or_damage)
    return [*lines, _totals(entries)]


def _heading(entry: ListedCheckpoint) -> str:
    if entry.group not in (ListGroup.ABANDONED, ListGroup.CORRUPT):
        return str(entry.group)
    return str(entry.path.parent.relative_to(entry.run.folder))


def _row(entry: ListedCheckpoint, now: datetime) -> tuple[str, ...]:
    """The cells of a line; none for a file whose head cannot be read."""
    if entry.error:
        return ()
    return (
        "-" if entry.step is None else str(entry.step),
        "-" if entry.epoch is None else str(entry.epoch),
        formatting.loss(entry.val_loss),
        formatting.short_time(entry.saved_at, now),
        formatting.short_bytes(entry.inode.size),
    )


def _damaged(entry: ListedCheckpoint, indent: int, longest: int) -> str:
    size = formatting.short_bytes(entry.inode.size)
    return f"{' ' * indent}{entry.path.name:{longest}} DAMAGED, {size}: verify says how"


def _totals(entries: list[ListedCheckpoint]) -> str:
    size = formatting.long_bytes(sum(entry.inode.size for entry in entries))
    disk = formatting.long_bytes(disk_bytes(entry.path for entry in entries))
    return f"{plural(len(entries), 'checkpoint')}, {size}; on disk they take {disk}"


VERB = Verb(
    "list the checkpoints of a run or of all runs",
    ("", "outputs/gpt2_run_20251106_143022", "--json | jq '.[].path'"),
    add_arguments,
    run,
)
