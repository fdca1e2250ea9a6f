"""Run the whole study: python -m experiments.exactness.run [--only WORD]. Writes results/.

Each training is a process of its own. On one rank it is forked from a server that has imported
PyTorch and nothing else, which saves the seconds of the import; two ranks are started by torchrun.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
)
from experiments.exactness.outcome import compare, copy_run
from experiments.exactness.table import as_markdown
from experiments.processes import machine

RESULTS = Path(__file__).parent / "results"
PRELOADED = ["gpt2ckpt.train", "gpt2ckpt.training.session", "experiments.exactness.source"]
AT_ONCE = 2
LIMIT = 600  # seconds for one training


@dataclass(frozen=True)
class Job:
    """A training: the words of its command, how many ranks, and where copies go, if any are made"""

    directory: Path
    words: list[str]
    ranks: int
    copies: Path | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="variants whose name has this word; results/ is left alone")
    parser.add_argument("--disk", type=Path, help="a folder on the disk to use (default: $TMPDIR)")
    arguments = parser.parse_args()
    variants = [v for v in VARIANTS if arguments.only is None or arguments.only in v.name]
    begun = time.time()
    results: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory(dir=arguments.disk) as folder:
        results["cases"] = study(Path(folder), variants)
    results["seconds"] = round(time.time() - begun)
    text = as_markdown(results)
    print(text)
    if arguments.only is None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "table.md").write_text(text)
    bad = sum(not row["same"] for row in results["cases"])
    sys.exit(1 if bad else 0)


def study(folder: Path, variants: list[Variant]) -> list[dict[str, Any]]:
    """One row for each resume, and one for each run that made the checkpoints."""
    write_tokens(folder)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    os.chdir(folder)
    first = [job for v in variants for job in (unbroken(folder, v), source(folder, v))]
    rows = []
    with context.Pool(AT_ONCE, maxtasksperchild=1) as pool:
        for _ in pool.imap_unordered(train, first):
            print(".", end="", file=sys.stderr, flush=True)
        for v in variants:
            steady = folder / "unbroken" / v.folder
            rows.append(compare(v.name, "never stopped", "-", source(folder, v).directory, steady))
        tried = cases(variants)
        jobs = [resumed(folder, case) for case in tried]
        for number, _ in enumerate(pool.imap(train, jobs)):
            case, job = tried[number], jobs[number]
            steady = folder / "unbroken" / case.variant.folder
            row = compare(case.variant.name, case.moment, case.kind, job.directory, steady)
            rows.append(row)
            print("." if row["same"] else "X", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rows


def write_tokens(folder: Path) -> None:
    """Tokens that follow from their predecessor most of the time, by plain arithmetic."""
    tokens, state = [0], 12345
    for _ in range(BLOCKS_PER_EPOCH * BLOCK + 20 * BLOCK):
        state = (state * 1103515245 + 12345) % 2**31
        noise = (state >> 16) % VOCABULARY
        tokens.append(noise if noise < 12 else (tokens[-1] * 5 + 7) % VOCABULARY)
    cut = BLOCKS_PER_EPOCH * BLOCK + 1
    np.array(tokens[:cut], dtype="<u2").tofile(folder / "train.bin")
    np.array(tokens[cut:], dtype="<u2").tofile(folder / "val.bin")


def unbroken(folder: Path, variant: Variant) -> Job:
    """Saves at its end only, and nobody sends it a signal."""
    words = [*variant.words, f"trainer.eval_every={EVAL_EVERY}", f"checkpoint.save_every={STEPS}"]
    return Job(folder / "unbroken" / variant.folder, words, variant.ranks)


def source(folder: Path, variant: Variant) -> Job:
    """The run that makes the checkpoints: a save after every step, an emergency at each moment."""
    words = [*variant.words, f"trainer.eval_every={EVAL_EVERY}", "checkpoint.save_every=1"]
    words.append(f"checkpoint.keep_rolling={STEPS}")
    copies = folder / "copies" / variant.folder
    return Job(folder / "source" / variant.folder, words, variant.ranks, copies)


def resumed(folder: Path, case: Case) -> Job:
    """Goes on, in a copy of the directory, from one file of it."""
    directory = folder / "resumed" / case.name
    copied = copy_run(folder / "copies" / case.variant.folder, case, directory)
    return Job(directory, [f"+resume={copied}"], case.variant.ranks)


def train(job: Job) -> None:
    """The whole of one training in this process, or under torchrun. Raises if it failed."""
    log = job.directory.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [*job.words, f"hydra.run.dir={job.directory}"]
    code = _torchrun(job, words, log) if job.ranks > 1 else _here(job, words, log)
    if code:
        raise RuntimeError(f"{job.directory.name} ended with {code}:\n{log.read_text()[-3000:]}")


def _torchrun(job: Job, words: list[str], log: Path) -> int:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={job.ranks}", "-m"]
    module = ["experiments.exactness.source", str(job.copies)] if job.copies else ["gpt2ckpt.train"]
    root = str(Path(__file__).resolve().parents[2])
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, *launch, *module, *words],
            env={**os.environ, "PYTHONPATH": root},
            stdout=output,
            stderr=output,
            timeout=LIMIT,
            check=False,
        )
    return done.returncode


def _here(job: Job, words: list[str], log: Path) -> int:
    from experiments.exactness.source import train_and_copy
    from gpt2ckpt.train import main as train_main

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["gpt2ckpt.train", *words]
    try:
        train_and_copy(job.copies, job.directory) if job.copies else train_main()
    except SystemExit as end:
        return int(end.code or 0) if isinstance(end.code, int | None) else 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
