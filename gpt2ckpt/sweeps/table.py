"""The table at the end of a sweep, and the one of what a sweep would do."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 100  # columns
LABEL = 52  # of them for the overrides, at most
HEADINGS = ("job", "overrides", "status", "best val loss")


@dataclass(frozen=True)
class Row:
    """One job; `reason` is why it is not finished, where that is known."""

    job: str
    label: str
    status: str
    best_val_loss: float | None = None
    reason: str = ""


def table(rows: Sequence[Row]) -> list[str]:
    """The lines: as narrow as the content, overrides wrapped, then the reasons."""
    cells = [(row.job, row.label, row.status, _loss(row.best_val_loss)) for row in rows]
    widths = [max(len(row[n]) for row in [HEADINGS, *cells]) for n in range(len(HEADINGS))]
    widths[1] = min(widths[1], LABEL)

    def line(job: str, label: str, status: str, loss: str) -> str:
        left = f"{job:{widths[0]}}  {label:{widths[1]}}  {status:{widths[2]}}"
        return f"{left}  {loss:>{widths[3]}}".rstrip()

    lines = [line(*HEADINGS)]
    for job, label, status, loss in cells:
        first, *more = textwrap.wrap(label, widths[1], break_on_hyphens=False) or [""]
        lines.append(line(job, first, status, loss))
        lines += [line("", rest, "", "") for rest in more]
    for row in rows:
        if row.reason:
            lines += textwrap.wrap(
                f"{row.job}: {row.reason}", WIDTH, subsequent_indent="  ", break_on_hyphens=False
            )
    return lines


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
