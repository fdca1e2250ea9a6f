"""Run the whole study: python -m experiments.training_speed.run [--quick]. Writes results/."""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from experiments.training_speed.memory import accounted_bytes
from experiments.training_speed.shapes import SHAPES

HERE = Path(__file__).parent
OWN = "gpt2ckpt"
REFERENCE = "reference"
VARIANTS = (
    *(OWN, REFERENCE, "reference, compiled", "transformers", "transformers, bfloat16"),
    "limit",
)
MODULE = "experiments.training_speed.worker"


def measure_all(repeats: int) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Every variant of every shape, one after another, and all of it again `repeats` times."""
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for repeat in range(repeats):
        for shape in SHAPES:
            for variant in VARIANTS:
                result = worker(variant, shape)
                results.setdefault(shape, {}).setdefault(variant, []).append(result)
                print(
                    f"{repeat + 1}/{repeats} {shape:6} {variant:24} {result['tokens_per_s']:8.0f}"
                )
    return results


def worker(variant: str, shape: str) -> Any:
    """One measurement in a fresh process."""
    command = [sys.executable, "-m", MODULE, variant, shape]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def start_up_seconds(repeats: int) -> dict[str, list[float]]:
    """From the command to its first step, to --help, and to the answer to a wrong override."""
    train = [sys.executable, "-m", "gpt2ckpt.train"]
    times: dict[str, list[float]] = {"first step": [], "--help": [], "config error": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeats):
            start = time.perf_counter()
            process = subprocess.Popen(
                [*train, "checkpoint=off"], cwd=folder, stdout=subprocess.PIPE, text=True
            )
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("step   1/"):
                    break
            times["first step"].append(time.perf_counter() - start)
            process.kill()
            process.wait()
            for name, word in (("--help", "--help"), ("config error", "optimizer.lrr=1")):
                start = time.perf_counter()
                subprocess.run([*train, word], cwd=folder, capture_output=True, check=False)
                times[name].append(time.perf_counter() - start)
    return times


def spread(values: list[float], form: str) -> str:
    """Median, and from least to most."""
    middle, least, most = (format(f(values), form) for f in (statistics.median, min, max))
    return f"{middle} ({least}-{most})"


def table(results: dict[str, Any], times: dict[str, list[float]], profiles: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [f"# Results\n\n{machine()}\n", "## Tokens per second, median (least-most)\n"]
    lines += ["| variant | " + " | ".join(SHAPES) + " |", "| --- |" + " --- |" * len(SHAPES)]
    for variant in VARIANTS:
        runs = [[r["tokens_per_s"] for r in results[shape][variant]] for shape in SHAPES]
        lines.append(f"| {variant} | " + " | ".join(spread(run, ",.0f") for run in runs) + " |")
    for other in (name for name in VARIANTS if name != OWN):
        cells = []
        for shape in SHAPES:
            own, peer = ([r["tokens_per_s"] for r in results[shape][name]] for name in (OWN, other))
            ratios = [a / b for a, b in zip(own, peer, strict=True)]
            cells.append(spread(ratios, ".2f"))
        lines.append(f"| **gpt2ckpt / {other}** | " + " | ".join(cells) + " |")
    lines.append("\n## Peak memory, MB (median over the repeats)\n")
    lines += ["| variant | " + " | ".join(SHAPES) + " |", "| --- |" + " --- |" * len(SHAPES)]
    for variant in VARIANTS[:-1]:
        cells = []
        for shape in SHAPES:
            peaks = [r["peak_bytes"] - r["base_bytes"] for r in results[shape][variant]]
            cells.append(f"{statistics.median(peaks) / 1e6:,.0f}")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    cells = [f"{accounted_bytes(shape) / 1e6:,.0f}" for shape in SHAPES.values()]
    lines.append("| accounted for in gpt2ckpt | " + " | ".join(cells) + " |")
    lines.append("\nAbove what the process takes after its imports.\n\n## Start-up, seconds\n")
    lines += ["| to | median (least-most) |", "| --- | --- |"]
    lines += [f"| {name} | {spread(values, '.2f')} |" for name, values in times.items()]
    for shape, rows in profiles.items():
        whole = sum(rows.values())
        lines.append(
            f"\n## Where a step of {shape} goes ({whole:.2f} s in the largest operators)\n"
        )
        lines += ["| operator | ms | share |", "| --- | --- | --- |"]
        top = list(rows.items())[:12]
        lines += [f"| {key} | {s * 1e3:,.0f} | {s / whole:.0%} |" for key, s in top]
    return "\n".join(lines) + "\n"


def machine() -> str:
    """What it ran on."""
    name = torch.cpu.get_capabilities().get("cpu_name", platform.processor())
    return (
        f"{name}, 2 threads; PyTorch {torch.__version__}, Python {platform.python_version()}; "
        f"command: `python -m experiments.training_speed.run`"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repeat instead of three")
    repeats = 1 if parser.parse_args().quick else 3
    times = start_up_seconds(5)
    results = measure_all(repeats)
    profiles = {shape: worker("profile", shape) for shape in SHAPES}
    (HERE / "results").mkdir(exist_ok=True)
    raw = {"results": results, "start_up_seconds": times, "profiles": profiles}
    (HERE / "results/results.json").write_text(json.dumps(raw, indent=1) + "\n")
    (HERE / "results/table.md").write_text(table(results, times, profiles))
    print(table(results, times, profiles))


if __name__ == "__main__":
    main()
