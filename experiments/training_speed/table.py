"""Formats the results as Markdown."""

from statistics import median
from typing import Any

from experiments.report import grid, spread
from experiments.training_speed.shapes import SHAPES

OWN, LIMIT = "gpt2ckpt", "matrix products alone"
VARIANTS = (
    *(OWN, "reference", "reference, compiled", "transformers", "transformers, bfloat16"),
    LIMIT,
)
Turns = list[dict[str, Any]]


def as_markdown(results: dict[str, Any]) -> str:
    """Return the report."""
    turns = results["turns"]
    parts = [
        *("# Results\n", _machine(results["machine"], turns)),
        *("\n## Tokens per second: median of the turns (least to most)\n", _speeds(turns)),
        *("\n## How many times as fast gpt2ckpt is, turn by turn\n", _ratios(turns)),
        *("\n## The same work: loss of the first batch\n", _losses(turns)),
        *("\n## Peak memory of a process, MB\n", _peaks(turns)),
        *("\n## What the peak of gpt2ckpt is made of, MB\n", _memory(results)),
        *("\n## Matrix products: where the limit comes from\n", _products(turns)),
        *("\n## Where the time of a step goes\n", _profile(results["profile_seconds"])),
        *("\n## Start-up, seconds\n", _startup(results["startup_seconds"])),
    ]
    return "\n".join(parts) + "\n"


def speeds(turns: Turns, shape: str) -> list[float]:
    """Return the tokens per second of the median step in each turn."""
    return [SHAPES[shape].tokens / median(turn["seconds"]) for turn in turns]


def _machine(facts: dict[str, Any], turns: dict[str, Any]) -> str:
    precision = next(iter(turns.values()))[LIMIT][0]["precision"]
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} threads; "
        f"PyTorch {facts['torch']}, Python {facts['python']}; load average before: "
        f"{facts['load_before']}. gpt2ckpt's precision, by `auto`: {precision}.\n\n"
        "`python -m experiments.training_speed.run`"
    )


def _speeds(turns: dict[str, Any]) -> str:
    rows = [
        [variant, *(spread(speeds(turns[name][variant], name), ",.0f") for name in turns)]
        for variant in VARIANTS
    ]
    return grid(["", *turns], rows)


def _ratios(turns: dict[str, Any]) -> str:
    rows = []
    for variant in VARIANTS[1:]:
        row, form = [f"as {variant}"], ".0%" if variant == LIMIT else ".2f"
        for name in turns:
            both = [speeds(turns[name][which], name) for which in (OWN, variant)]
            row.append(spread([own / other for own, other in zip(*both, strict=True)], form))
        rows.append(row)
    return grid(["", *turns], rows)


def _losses(turns: dict[str, Any]) -> str:
    rows = [
        [variant, *(f"{turns[name][variant][0]['losses'][0]:.4f}" for name in turns)]
        for variant in VARIANTS[:-1]
    ]
    return grid(["", *turns], rows)


def _peaks(turns: dict[str, Any]) -> str:
    rows = []
    for variant in VARIANTS[:-1]:
        peaks = [[turn["peak_bytes"] / 1e6 for turn in turns[name][variant]] for name in turns]
        rows.append([variant, *(spread(values, ",.0f") for values in peaks)])
    return grid(["", *turns], rows)


def _memory(results: dict[str, Any]) -> str:
    accounts, turns = results["accounted_bytes"], results["turns"]
    before = [median(t["bytes_before"] for t in turns[name][OWN]) for name in accounts]
    peaks = [max(t["peak_bytes"] for t in turns[name][OWN]) for name in accounts]
    rows = [["Python, PyTorch, the tokenizer: before a model is made", *before]]
    for part in next(iter(accounts.values())):
        rows.append([part, *(accounts[name][part] for name in accounts)])
    sums = [sum(a.values()) + b for a, b in zip(accounts.values(), before, strict=True)]
    rows += [["**accounted for**", *sums], ["**measured peak, the highest of the turns**", *peaks]]
    text = [[row[0], *(f"{value / 1e6:,.0f}" for value in row[1:])] for row in rows]
    share = [f"{peak / total:.0%}" for peak, total in zip(peaks, sums, strict=True)]
    return grid(["", *accounts], [*text, ["measured / accounted for", *share]])


def _products(turns: dict[str, Any]) -> str:
    rows = []
    for name in turns:
        tables = [turn["products"] for turn in turns[name][LIMIT]]
        whole = median(turn["seconds"][0] for turn in turns[name][LIMIT])
        for product in tables[0]:
            size = tables[0][product]["forward"]
            form = f"{size['count']} times {size['rows']} x {size['inner']} x {size['columns']}"
            form += f", {size['batch']} at a time" if size["batch"] > 1 else ""
            seconds = median(table[product]["seconds"] for table in tables)
            rate = median(table[product]["gflop_per_s"] for table in tables)
            cells = [name, product, form, f"{seconds * 1e3:,.1f}"]
            rows.append([*cells, f"{seconds / whole:.0%}", f"{rate:,.0f}"])
    head = ["", "product", "rows x inner x columns (forward)", "ms", "share", "GFLOP/s"]
    note = "Milliseconds of the forward product and of the two of its backward pass together.\n\n"
    return note + grid(head, rows)


def _profile(profiles: dict[str, dict[str, float]]) -> str:
    groups = sorted({group for rows in profiles.values() for group in rows})
    first = next(iter(profiles.values()))
    groups.sort(key=lambda group: -first.get(group, 0.0))
    rows = []
    for group in groups:
        row = [group]
        for seconds in profiles.values():
            part, whole = seconds.get(group, 0.0), sum(seconds.values())
            row.append(f"{part * 1e3:,.0f} ms, {part / whole:.0%}")
        rows.append(row)
    return grid(["", *profiles], rows)


def _startup(times: dict[str, list[float]]) -> str:
    rows = [[name, spread(values, ".2f")] for name, values in times.items()]
    return grid(["command", f"median of {len(next(iter(times.values())))}"], rows)
