"""Run the whole study: python -m experiments.training_speed.run [--quick]. Writes results/.

Every measurement is a process of its own; the variants take turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.training_speed import startup
from experiments.training_speed.shapes import SHAPES, THREADS
from experiments.training_speed.table import VARIANTS, as_markdown

RESULTS = Path(__file__).parent / "results"
REPEATS = 3
IS_BUSY = 0.5  # load average from which on other programs are likely to disturb


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one turn; results/ is left alone")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    arguments = parser.parse_args()
    partial = arguments.quick or arguments.shapes != list(SHAPES)
    results = {"machine": machine(), "startup_seconds": startup.measure()}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # compiled in the first turn, then kept
        results["turns"] = take_turns(arguments.shapes, 1 if arguments.quick else REPEATS)
    results["profile_seconds"] = {name: run_worker("profile", name) for name in arguments.shapes}
    results["accounted_bytes"] = {name: run_worker("memory", name) for name in arguments.shapes}
    text = as_markdown(results)
    print(text)
    if not partial:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        (RESULTS / "table.md").write_text(text)


def take_turns(shapes: list[str], repeats: int) -> dict[str, dict[str, list[Any]]]:
    """All measurements of every variant, by shape and variant."""
    turns: dict[str, dict[str, list[Any]]] = {name: {} for name in shapes}
    for turn in range(repeats):
        for name in shapes:
            for variant in VARIANTS:
                result = run_worker(variant, name)
                turns[name].setdefault(variant, []).append(result)
                speed = SHAPES[name].tokens / sorted(result["seconds"])[len(result["seconds"]) // 2]
                line = f"turn {turn + 1}/{repeats}  {name:6} {variant:24} {speed:8,.0f} tokens/s"
                print(line, file=sys.stderr, flush=True)
    return turns


def run_worker(variant: str, shape: str) -> Any:
    """One measurement in a fresh process; what the process prints besides is not shown."""
    command = [sys.executable, "-m", "experiments.training_speed.worker", variant, shape]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """What it runs on; asked in another process, for this one is to stay small."""
    ask = (
        "import json, platform, torch; print(json.dumps({"
        "'cpu': torch.cpu.get_capabilities().get('cpu_name', platform.processor()), "
        "'torch': torch.__version__, 'python': platform.python_version()}))"
    )
    facts: dict[str, Any] = json.loads(subprocess.check_output([sys.executable, "-c", ask]))
    facts["cores"], facts["threads"] = os.cpu_count(), THREADS
    facts["load_before"] = round(os.getloadavg()[0], 2)
    if facts["load_before"] > IS_BUSY:
        print(f"warning: the load average is {facts['load_before']}; close what runs besides")
    return facts


if __name__ == "__main__":
    main()
