"""Runs the study: python -m experiments.exactness.run. Writes results/.

A part of it, selected by --only TEXT, is only printed.

Each training runs in its own process. On one rank it is forked from a server that has imported the
modules, which saves seconds. First starts are the complete command; resumes skip Hydra (resume.py).
Two ranks are always the complete command under torchrun.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.exactness.jobs import Job, train
from experiments.exactness.matrix import (
    BLOCK,
    BLOCKS_PER_EPOCH,
    EVAL_EVERY,
    STEPS,
    VARIANTS,
    VOCABULARY,
    Case,
    Variant,
    cases,
    groups,
)
from experiments.exactness.outcome import compare, copy_run
from experiments.exactness.table import as_markdown
from experiments.processes import machine

RESULTS = Path(__file__).parent / "results"
PRELOADED = ["experiments.exactness.jobs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="only variants with this text in their names")
    parser.add_argument("--disk", type=Path, help="a folder on the disk to use (default: $TMPDIR)")
    parser.add_argument(
        "--at-once", type=int, default=2, help="number of runs that train at the same time"
    )
    arguments = parser.parse_args()
    variants = [variant for variant in VARIANTS if arguments.only in variant.name]
    facts, rows = machine(), []
    for group in groups(variants):
        with tempfile.TemporaryDirectory(dir=arguments.disk) as folder:
            for row in study(Path(folder), group, arguments.at_once):
                rows.append(row)
    results = {"machine": facts, "cases": rows}
    print(as_markdown(results))
    if not arguments.only:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "table.md").write_text(as_markdown(results))
    sys.exit(0 if all(row["same"] for row in rows) else 1)


def study(folder: Path, variants: list[Variant], at_once: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each resume and for each run that wrote the checkpoints."""
    write_tokens(folder)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = Path.cwd()
    os.chdir(folder)
    first = [job for v in variants for job in (unbroken(folder, v), source(folder, v))]
    with context.Pool(at_once, maxtasksperchild=1) as pool:
        for _ in pool.imap_unordered(train, first):
            print(".", end="", file=sys.stderr, flush=True)
        for v in variants:
            steady = folder / "unbroken" / v.folder
            yield compare(v.name, "never stopped", "-", source(folder, v).directory, steady)
        tried = cases(variants)
        jobs = [resumed(folder, case) for case in tried]
        for number, _ in enumerate(pool.imap(train, jobs)):
            case, job = tried[number], jobs[number]
            steady = folder / "unbroken" / case.variant.folder
            row = compare(case.variant.name, case.moment, case.kind, job.directory, steady)
            print("." if row["same"] else "X", end="", file=sys.stderr, flush=True)
            yield row
    print(file=sys.stderr)
    os.chdir(before)


def write_tokens(folder: Path) -> None:
    """Write tokens that mostly follow from their predecessor by arithmetic."""
    tokens, state = [0], 12345
    for _ in range(BLOCKS_PER_EPOCH * BLOCK + 20 * BLOCK):
        state = (state * 1103515245 + 12345) % 2**31
        noise = (state >> 16) % VOCABULARY
        tokens.append(noise if noise < 12 else (tokens[-1] * 5 + 7) % VOCABULARY)
    cut = BLOCKS_PER_EPOCH * BLOCK + 1
    np.array(tokens[:cut], dtype="<u2").tofile(folder / "train.bin")
    np.array(tokens[cut:], dtype="<u2").tofile(folder / "val.bin")


def unbroken(folder: Path, variant: Variant) -> Job:
    """Return the undisturbed training, which saves at its end only."""
    overrides = [
        *variant.overrides,
        f"trainer.eval_every={EVAL_EVERY}",
        f"checkpoint.save_every={STEPS}",
    ]
    return Job(folder / "unbroken" / variant.folder, overrides, variant.ranks)


def source(folder: Path, variant: Variant) -> Job:
    """Return the training that saves after every step and at each moment on a signal."""
    overrides = [*variant.overrides, f"trainer.eval_every={EVAL_EVERY}", "checkpoint.save_every=1"]
    overrides.append(f"checkpoint.keep_rolling={STEPS}")
    copies = folder / "copies" / variant.folder
    return Job(folder / "source" / variant.folder, overrides, variant.ranks, copies)


def resumed(folder: Path, case: Case) -> Job:
    """Return the training that resumes from one file in a copy of the directory."""
    directory = folder / "resumed" / case.name
    copied = copy_run(folder / "copies" / case.variant.folder, case, directory)
    plugins = [word for word in case.variant.overrides if word.startswith("plugins=")]
    return Job(directory, [f"+resume={copied}", *plugins], case.variant.ranks, resumed=copied)


if __name__ == "__main__":
    main()
