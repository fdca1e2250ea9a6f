"""Copies a run directory to resume in it, and compares the result."""

import shutil
from pathlib import Path
from typing import Any

from experiments.exactness.matrix import MOMENTS, STEPS, Case
from gpt2ckpt.checkpoint.reading import check, compare_tensors, read_head
from gpt2ckpt.loggers import metrics_file
from gpt2ckpt.recovery_drill.results import differing_losses, differing_state


def copy_run(copies: Path, case: Case, directory: Path) -> Path:
    """Copy the run at the moment of `case` and return the file to resume from."""
    shutil.copytree(copies / str(MOMENTS[case.moment]), directory)
    return case.file_in(directory / "checkpoints")


def compare(variant: str, moment: str, kind: str, directory: Path, steady: Path) -> dict[str, Any]:
    """Return whether the run equals `steady` bitwise: weights, optimizer, losses."""
    ours, theirs = (run / "checkpoints" / "latest.pt" for run in (directory, steady))
    check(ours)
    differing, tensors = compare_tensors(ours, theirs)
    state = differing_state(read_head(ours), read_head(theirs))
    losses = differing_losses(_events(directory), _events(steady), STEPS)
    log = directory.with_suffix(".log").read_text()
    lines = [line for line in log.splitlines() if line.startswith(("resuming", "replay"))]
    return {
        "variant": variant,
        "moment": moment,
        "kind": kind,
        "output": [line.replace(f"{directory}/checkpoints/", "") for line in lines],
        "tensors": tensors,
        "differing": [*differing, *state, *losses],
        "same": not (differing or state or losses),
    }


def _events(run: Path) -> list[dict[str, Any]]:
    return [e for e in metrics_file.read(run / "metrics.jsonl") if "train_loss" in e]
