"""Runs one training of the study, in this process or under torchrun."""

import logging
import os
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import gpt2ckpt.train
from experiments.exactness.resume import resume
from experiments.exactness.source import train_and_copy
from gpt2ckpt.config import plugins

LIMIT = 600  # seconds for one training


@dataclass(frozen=True)
class Job:
    """A training run: its overrides, its number of ranks, the folder of its copies (None for no
    copies), and the file to resume from."""

    directory: Path
    overrides: list[str]
    ranks: int
    copies: Path | None = None
    resumed: Path | None = None


def train(job: Job) -> None:
    """Run one training in this process or under torchrun. Raises if it failed."""
    log = job.directory.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    overrides = [*job.overrides, f"hydra.run.dir={job.directory}"]
    code = _torchrun(job, overrides, log) if job.ranks > 1 else _here(job, overrides, log)
    if code:
        raise RuntimeError(f"{job.directory.name} ended with {code}:\n{log.read_text()[-3000:]}")


def _torchrun(job: Job, overrides: list[str], log: Path) -> int:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={job.ranks}", "-m"]
    module = ["experiments.exactness.source", str(job.copies)] if job.copies else ["gpt2ckpt.train"]
    root = str(Path(__file__).resolve().parents[2])
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, *launch, *module, *overrides],
            env={**os.environ, "PYTHONPATH": root},
            stdout=output,
            stderr=output,
            timeout=LIMIT,
            check=False,
        )
    return done.returncode


def _here(job: Job, overrides: list[str], log: Path) -> int:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    sys.argv = ["gpt2ckpt.train", *overrides]
    try:
        if job.resumed:
            plugins.load(plugins.switched_on(job.overrides, None, "train"))
            resume(job.resumed, job.directory)
        elif job.copies:
            train_and_copy(job.copies, job.directory)
        else:
            gpt2ckpt.train.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
    return 0
