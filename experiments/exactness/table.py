"""Formats the results as Markdown."""

import re
from typing import Any

from experiments.exactness.matrix import KINDS, MOMENTS, STEPS, VARIANTS, cases
from experiments.report import grid

Row = dict[str, Any]


def as_markdown(results: dict[str, Any]) -> str:
    """Return a table per moment with variants as rows and kinds of checkpoint as columns."""
    facts, rows = results["machine"], results["cases"]
    resumed = [row for row in rows if row["kind"] != "-"]
    same = sum(row["same"] for row in resumed)
    parts = [
        "# Results\n",
        f"{facts['cpu']}, {facts['cores']} cores; Linux {facts['kernel']}, PyTorch "
        f"{facts['torch']}, Python {facts['python']}.\n\n"
        "`python -m experiments.exactness.run`\n",
        f"**{same} of {len(resumed)} resumed runs ended bitwise as the run that was never "
        f"stopped.** {_sources(rows)}\n",
        "A cell names the step that the resume went on from; = is: every tensor, every generator "
        f"and all {STEPS} losses are bitwise the same.",
        *_missing(resumed),
    ]
    for moment, step in MOMENTS.items():
        parts += [f"\n## Stopped after step {step}: {moment}\n", _table(resumed, moment)]
    if bad := [row for row in rows if not row["same"]]:
        parts.append("\n## What was not the same\n")
        parts += [
            f"- {row['variant']}, {row['moment']}, {row['kind']}: {'; '.join(row['differing'][:3])}"
            for row in bad
        ]
    return "\n".join(parts) + "\n"


def _missing(resumed: list[Row]) -> list[str]:
    count = len(cases(VARIANTS)) - len(resumed)
    return [f"\n**{count} cells have not been run yet.**"] if count else []


def _sources(rows: list[Row]) -> str:
    made = [row for row in rows if row["kind"] == "-"]
    same = sum(row["same"] for row in made)
    return (
        f"So did {same} of {len(made)} runs that made the checkpoints: saving after every step "
        "and on a signal changes no bit."
    )


def _table(rows: list[Row], moment: str) -> str:
    cells = {(r["variant"], r["kind"]): _cell(r) for r in rows if r["moment"] == moment}
    lines = [[v.name, *(cells.get((v.name, kind), "not run") for kind in KINDS)] for v in VARIANTS]
    return grid(["", *KINDS], lines)


def _cell(row: Row) -> str:
    match = re.search(r"resuming from (\S+), step (\d+)", " ".join(row["output"]))
    step = match[2] if match else "?"
    return f"{step} =" if row["same"] else f"{step} **differs**"
