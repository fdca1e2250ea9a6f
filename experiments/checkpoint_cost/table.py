"""Formats the results as Markdown."""

from collections.abc import Callable
from statistics import median
from typing import Any

from experiments.checkpoint_cost.readers import CHECKS, LISTED, RESTORES
from experiments.checkpoint_cost.savers import OWN, SAVERS, YARDSTICK
from experiments.report import grid, spread

Turns = dict[str, dict[str, list[Any]]]


def as_markdown(results: dict[str, Any]) -> str:
    """Return the report."""
    facts, states = results["machine"], results["turns"]
    parts = [
        "# Results\n",
        f"{facts['cpu']}, {facts['cores']} cores; Linux {facts['kernel']}, PyTorch "
        f"{facts['torch']}, Python {facts['python']}; load average before: "
        f"{facts['load_before']}.\n\n`python -m experiments.checkpoint_cost.run`",
    ]
    for name, turns in states.items():
        size = turns["save"][OWN][0]["state_bytes"]
        parts += [f"\n## {name}: a state of {size / 1e6:,.0f} MB\n", _saves(turns), ""]
        parts += [_restores(turns), "", _others(turns)]
    return "\n".join(parts) + "\n"


def later(turn: dict[str, Any], key: str) -> float:
    """Return the median over the saves of a process without its first."""
    return float(median(save[key] for save in turn["saves"][1:]))


def _saves(turns: Turns) -> str:
    def column(measure: Callable[[dict[str, Any]], float], form: str) -> list[str]:
        return [spread(map(measure, turns["save"][variant]), form) for variant in SAVERS]

    yardstick = [later(turn, "stopped") for turn in turns["save"][YARDSTICK]]
    shares = []
    for variant in SAVERS:
        own = [later(turn, "stopped") for turn in turns["save"][variant]]
        shares.append(spread((a / b for a, b in zip(own, yardstick, strict=True)), ".1%"))
    columns = [
        list(SAVERS),
        column(lambda turn: later(turn, "stopped") * 1e3, ",.0f"),
        shares,
        column(lambda turn: turn["saves"][0]["stopped"] * 1e3, ",.0f"),
        column(lambda turn: later(turn, "durable") * 1e3, ",.0f"),
        column(lambda turn: later(turn, "written") / turn["state_bytes"], ".2f"),
        column(lambda turn: turn["extra_bytes"] / turn["state_bytes"], ".2f"),
        column(lambda turn: later(turn, "cpu") * 1e3, ",.0f"),
    ]
    head = [
        *("saving", "loop stopped, ms", f"of {YARDSTICK}", "first save, ms", "durable after, ms"),
        *("bytes written / state", "extra memory / state", "CPU, ms"),
    ]
    return grid(head, map(list, zip(*columns, strict=True)))


def _restores(turns: Turns) -> str:
    rows = []
    for variant in RESTORES:
        row = [variant]
        for task in ("cached", "device"):
            own, other = (_seconds(turns, task, which) for which in (variant, "torch.load"))
            ratio = spread((a / b for a, b in zip(own, other, strict=True)), ".2f")
            row += [spread((value * 1e3 for value in own), ",.0f"), ratio]
        rows.append(row)
    head = ["restoring", "cached, ms", "/ torch.load", "from the device, ms", "/ torch.load"]
    return grid(head, rows)


def _others(turns: Turns) -> str:
    rows = []
    for task in ("cached", "device"):
        verify, read = (
            [turn["bytes"] / turn["seconds"] / 1e9 for turn in turns[task][variant]]
            for variant in CHECKS
        )
        share = spread((a / b for a, b in zip(verify, read, strict=True)), ".0%")
        rows.append([f"verify, {task}", spread(verify, ".2f"), spread(read, ".2f"), share])
    listing = spread(_seconds(turns, "list", "checkpoints list"), ".2f")
    table = grid(["", "verify, GB/s", "reading, GB/s", "verify / reading"], rows)
    return f"{table}\n\n`checkpoints list` of {LISTED} files: {listing} s from command to end."


def _seconds(turns: Turns, task: str, variant: str) -> list[float]:
    return [turn["seconds"] for turn in turns[task][variant]]
