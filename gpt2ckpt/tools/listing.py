"""`list`: print the checkpoints of runs, grouped, and the space that they take on disk."""

import argparse
from datetime import datetime, timedelta
from itertools import chain

from gpt2ckpt.files.disk_usage import disk_bytes
from gpt2ckpt.loggers.metrics_file import to_json
from gpt2ckpt.tools.command_line import Subcommand, add_json
from gpt2ckpt.tools.inventory import MOVED_AWAY, ListedCheckpoint, as_record, list_checkpoints
from gpt2ckpt.tools.targets import add_dir, find_runs, no_runs
from gpt2ckpt.units import human_bytes, plural

HEADINGS = ("step", "epoch", "val", "saved", "size")
WIDTH = 80  # columns; the table is no wider
HALF_A_YEAR = timedelta(days=182)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `list`."""
    add_dir(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the list; a damaged file is a line of the list, not an error."""
    runs = [list_checkpoints(run) for run in find_runs(args.dir)]
    if args.json:
        print(
            to_json([as_record(item, checkpoints) for checkpoints in runs for item in checkpoints])
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


def _lines(checkpoints: list[ListedCheckpoint], now: datetime) -> list[str]:
    """Return the lines of the table of one run."""
    rows = [_row(checkpoint, now) for checkpoint in checkpoints]
    cells = [HEADINGS, *(row for row in rows if row)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    longest = max(len(checkpoint.path.name) for checkpoint in checkpoints)
    indent = max(0, min(2, WIDTH - longest - sum(widths) - len(widths)))

    def line(name: str, row: tuple[str, ...]) -> str:
        right = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        return f"{' ' * indent}{name:{longest}} {' '.join(right)}"

    lines = [str(checkpoints[0].run.directory), line("", HEADINGS)]
    heading = ""
    for checkpoint, row in zip(checkpoints, rows, strict=True):
        if (wanted := _heading(checkpoint)) != heading:
            lines.append(heading := wanted)
        name = checkpoint.path.name
        lines.append(line(name, row) if row else _damaged(checkpoint, indent, longest))
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
        _loss(checkpoint.meta.val_loss),
        _short_time(checkpoint.saved_at, now),
        _short_bytes(checkpoint.inode.size),
    )


def _damaged(checkpoint: ListedCheckpoint, indent: int, longest: int) -> str:
    size = _short_bytes(checkpoint.inode.size)
    return f"{' ' * indent}{checkpoint.path.name:{longest}} DAMAGED, {size}: verify prints why"


def _totals(checkpoints: list[ListedCheckpoint]) -> str:
    size = human_bytes(sum(checkpoint.inode.size for checkpoint in checkpoints))
    disk = human_bytes(disk_bytes(checkpoint.path for checkpoint in checkpoints))
    return f"{plural(len(checkpoints), 'checkpoint')}, {size}; on disk they take {disk}"


def _short_bytes(count: float) -> str:
    """Return bytes in at most five characters, in decimal units: 999B, 9.7M, 149M, 1.5G."""
    for unit in ("B", "K", "M", "G", "T"):
        if count < 999.5 or unit == "T":
            break
        count /= 1000
    return f"{count:.0f}{unit}" if count >= 99.5 or unit == "B" else f"{count:.1f}{unit}"


def _short_time(moment: datetime | None, now: datetime) -> str:
    """Return a local time as month, day and minute; if it is half a year old, as a date."""
    if moment is None:
        return "-"
    is_recent = abs(now - moment) < HALF_A_YEAR
    return f"{moment.astimezone():{'%m-%d %H:%M' if is_recent else '%Y-%m-%d'}}"


def _loss(value: float | None) -> str:
    """Return a loss in six characters, or a dash."""
    if value is None:
        return "-"
    return f"{value:.4f}" if 0 <= value < 10 else f"{value:.3f}"


SUBCOMMAND = Subcommand(
    "list the checkpoints of a run or of all runs",
    ("", "outputs/gpt2_run_20251106_143022", "--json | jq '.[].path'"),
    add_arguments,
    run,
)
