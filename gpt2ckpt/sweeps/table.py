"""Formats the table that a sweep and its dry run print."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from gpt2ckpt.sweeps.journal import COMPLETE

WIDTH = 80  # columns
JOB = 20  # columns for the name of a job, at most
HEADINGS = ("job", "overrides", "status", "best val loss")
MARK = "best"


@dataclass(frozen=True)
class Row:
    """A job in the table; `reason` is why it is not finished, `warnings` are about its settings."""

    job: str
    label: str
    status: str
    best_val_loss: float | None = None
    reason: str = ""
    warnings: tuple[str, ...] = ()


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Sort jobs: first finished jobs by loss, then those without a loss, then unfinished jobs."""
    return sorted(rows, key=lambda row: (row.status not in COMPLETE, _rank(row)))


def best(rows: Sequence[Row]) -> Row | None:
    """Return the finished job with the lowest loss; None if no job has a loss."""
    finished = [row for row in ranked(rows) if row.status in COMPLETE and _rank(row) < math.inf]
    return finished[0] if finished else None


def table(rows: Sequence[Row], marked: Row | None = None) -> list[str]:
    """Return the lines of the table, the reasons and the warnings, at most 80 columns wide."""
    cells = [(row.job, row.label, row.status, _loss(row.best_val_loss)) for row in rows]
    widths = [max(len(row[n]) for row in [HEADINGS, *cells]) for n in range(len(HEADINGS))]
    widths[0] = min(widths[0], JOB)
    mark = len(MARK) + 2 if marked else 0
    others = widths[0] + widths[2] + widths[3] + 2 * (len(widths) - 1)
    widths[1] = min(widths[1], WIDTH - others - mark)
    lines = [_line(HEADINGS, widths)]
    for row, (job, label, status, loss) in zip(rows, cells, strict=True):
        parts = zip_longest(_wrap(job, widths[0]), _wrap(label, widths[1]), fillvalue="")
        for at, (job_part, label_part) in enumerate(parts):
            rest = (status, loss) if at == 0 else ("", "")
            is_marked = row is marked and at == 0
            lines.append(
                _line((job_part, label_part, *rest), widths) + f"  {MARK}" * bool(is_marked)
            )
    reasons = [f"{row.job}: {row.reason}" for row in rows if row.reason]
    return lines + [line for text in [*reasons, *_warnings(rows)] for line in _wrap(text, WIDTH, 2)]


def _warnings(rows: Sequence[Row]) -> list[str]:
    """Return a line for each warning, with the jobs that it concerns."""
    jobs: dict[str, list[str]] = {}
    for row in rows:
        for warning in row.warnings:
            jobs.setdefault(warning, []).append(row.job)
    return [f"{', '.join(names)}: warning: {warning}" for warning, names in jobs.items()]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    job, label, status, loss = cells
    left = f"{job:{widths[0]}}  {label:{widths[1]}}  {status:{widths[2]}}"
    return f"{left}  {loss:>{widths[3]}}".rstrip()


def _wrap(text: str, width: int, indent: int = 0) -> list[str]:
    lines = textwrap.wrap(text, width, subsequent_indent=" " * indent, break_on_hyphens=False)
    return lines or [""]


def _rank(row: Row) -> float:
    loss = row.best_val_loss
    return loss if loss is not None and math.isfinite(loss) else math.inf


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
