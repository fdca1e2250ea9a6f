"""`python -m experiments.watchers.run`: measures training runs with one failing watcher each.

Each is compared with the undisturbed training runs before and after it, in time and bitwise. These
have the same logger, and a terminal that is read where the failing one has a terminal.
"""

import argparse
import tempfile
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import mean

import numpy as np

from experiments.processes import machine
from experiments.report import grid
from tests import preload
from tests.endtoend.watchers import ALL, MODEL, NONE, Disturbance, Ended, train

RESULTS = Path(__file__).parent / "results"
MOST = 1.10  # times the undisturbed time, in which a disturbed training is to end


def main() -> None:
    """Train undisturbed and disturbed in turn, and write a table after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8000, help="steps of each run")
    parser.add_argument("--only", default="", help="a part of a combination's name")
    args = parser.parse_args()
    facts = machine()
    chosen = [each for each in ALL if args.only in each.name]
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = preload.build(folder).library
        overrides = _overrides(folder, args.steps)
        last: tuple[Disturbance, Ended] | None = None
        for number, disturbance in enumerate(chosen, 1):
            undisturbed = _undisturbed(disturbance)
            if last is None or last[0] != undisturbed:
                last = undisturbed, train(undisturbed, overrides, folder / f"{number}_0", library)
            found = train(disturbance, overrides, folder / f"{number}_1", library)
            after = train(undisturbed, overrides, folder / f"{number}_2", library)
            rows.append(_row(disturbance, found, last[1], after))
            last = undisturbed, after
            _write(rows, args.steps, f"{facts['cpu']}, {facts['cores']} cores, {facts['torch']}")
    print((RESULTS / "table.md").read_text())


def _undisturbed(disturbance: Disturbance) -> Disturbance:
    """Return the same logger and console without a fault."""
    has_terminal = disturbance.console in ("stopped", "terminal")
    return replace(NONE, console="terminal" if has_terminal else "file", logger=disturbance.logger)


def _overrides(folder: Path, steps: int) -> list[str]:
    """Return the arguments of a small training with every watcher enabled."""
    tokens = np.random.default_rng(0).integers(0, 64, 3000)
    for split, part in (("train", tokens[:2000]), ("val", tokens[2000:])):
        part.astype("<u2").tofile(folder / f"{split}.bin")
    return [
        *(*MODEL, f"data.train={folder}/train.bin", f"data.val={folder}/val.bin"),
        *(f"trainer.max_steps={steps}", f"trainer.sample_every={max(steps // 20, 1)}"),
        *(f"checkpoint.save_every={max(steps // 40, 1)}", "checkpoint.scrub_mb_per_s=10000"),
        *("checkpoint.scrub_every=2", "checkpoint.save_epochs=false"),
    ]


def _row(disturbance: Disturbance, found: Ended, before: Ended, after: Ended) -> list[str]:
    undisturbed = mean([before.seconds, after.seconds])
    ratio = found.seconds / undisturbed
    row = [
        *(disturbance.watcher, disturbance.way),
        *(f"{found.seconds:.1f} s", f"{undisturbed:.1f} s"),
        f"{ratio:.3f}{' (more than aimed at)' if ratio > MOST else ''}",
        ", ".join(found.differences(after)) or "none",
    ]
    print(" | ".join(row), flush=True)
    return row


def _write(rows: list[list[str]], steps: int, facts: str) -> None:
    head = ["watcher", "fails", "disturbed", "undisturbed", "ratio", "differences"]
    RESULTS.mkdir(exist_ok=True)
    command = f"`python -m experiments.watchers.run --steps {steps}`, {date.today()}"
    (RESULTS / "table.md").write_text(f"{command}\n\n{facts}\n\n{grid(head, rows)}\n")


if __name__ == "__main__":
    main()
