"""Runs the study: python -m experiments.checkpoint_cost.run [--quick]. Writes results/.

Every measurement runs in its own process; the variants take turns.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.checkpoint_cost.readers import CHECKS, RESTORES
from experiments.checkpoint_cost.savers import SAVERS
from experiments.checkpoint_cost.states import MODELS
from experiments.checkpoint_cost.table import as_markdown
from experiments.processes import machine, run_worker

RESULTS = Path(__file__).parent / "results"
WORKER = "experiments.checkpoint_cost.worker"
REPEATS = 3
NOT_NAMED = "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="measure one round; do not write results/"
    )
    parser.add_argument("--states", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--disk", type=Path, help="a folder on the disk to measure (default: $TMPDIR)"
    )
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory(dir=arguments.disk) as folder:
        results["turns"] = {
            name: take_turns(name, Path(folder), 1 if arguments.quick else REPEATS)
            for name in arguments.states
        }
    text = as_markdown(results)
    print(text)
    if not arguments.quick and arguments.states == list(MODELS):
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "table.md").write_text(text)


def take_turns(name: str, folder: Path, repeats: int) -> dict[str, dict[str, list[Any]]]:
    """Return all measurements of one state by task and variant."""
    turns: dict[str, dict[str, list[Any]]] = {}

    def measure(task: str, variant: str, target: Path) -> None:
        result = run_worker(WORKER, task, variant, name, str(target))
        turns.setdefault(task, {}).setdefault(variant, []).append(result)
        print(f"{name:7} {task:7} {variant}", file=sys.stderr, flush=True)

    files = folder / "files"
    run_worker(WORKER, "prepare", NOT_NAMED, name, str(files))
    for _ in range(repeats):
        for variant in SAVERS:
            target = folder / "saves"
            target.mkdir()
            measure("save", variant, target)
            shutil.rmtree(target)
        for task in ("cached", "device"):
            for variant in (*RESTORES, *CHECKS):
                measure(task, variant, files)
        measure("list", "checkpoints list", files)
    shutil.rmtree(files)
    return turns


if __name__ == "__main__":
    main()
