"""Runs the study: python -m experiments.training_speed.run [--quick]. Writes results/.

Every measurement runs in its own process; the variants take turns.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.processes import machine, run_worker
from experiments.training_speed import startup
from experiments.training_speed.shapes import SHAPES, THREADS
from experiments.training_speed.table import VARIANTS, as_markdown

RESULTS = Path(__file__).parent / "results"
WORKER = "experiments.training_speed.worker"
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="measure one round; do not write results/"
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    arguments = parser.parse_args()
    partial = arguments.quick or arguments.shapes != list(SHAPES)
    facts = {**machine(), "threads": THREADS}
    results = {"machine": facts, "startup_seconds": startup.measure()}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # compiled in the first turn, then kept
        results["turns"] = take_turns(arguments.shapes, 1 if arguments.quick else REPEATS)
    for task, key in (("profile", "profile_seconds"), ("memory", "accounted_bytes")):
        results[key] = {name: run_worker(WORKER, task, name) for name in arguments.shapes}
    text = as_markdown(results)
    print(text)
    if not partial:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "table.md").write_text(text)


def take_turns(shapes: list[str], repeats: int) -> dict[str, dict[str, list[Any]]]:
    """Return all measurements by shape and variant."""
    turns: dict[str, dict[str, list[Any]]] = {name: {} for name in shapes}
    for turn in range(repeats):
        for name in shapes:
            for variant in VARIANTS:
                result = run_worker(WORKER, variant, name)
                turns[name].setdefault(variant, []).append(result)
                speed = SHAPES[name].tokens / sorted(result["seconds"])[len(result["seconds"]) // 2]
                line = f"turn {turn + 1}/{repeats}  {name:6} {variant:24} {speed:8,.0f} tokens/s"
                print(line, file=sys.stderr, flush=True)
    return turns


if __name__ == "__main__":
    main()
