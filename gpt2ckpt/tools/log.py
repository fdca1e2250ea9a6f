"""`log`: print the family tree of runs with their resumes, rollbacks and forks."""

import argparse
import re
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from gpt2ckpt.checkpoint.state import ParentRun
from gpt2ckpt.runs.events import read_events
from gpt2ckpt.runs.layout import LOG
from gpt2ckpt.runs.newest import parse_moment
from gpt2ckpt.tools.command_line import Subcommand
from gpt2ckpt.tools.inventory import ListedCheckpoint, ListGroup, list_checkpoints
from gpt2ckpt.tools.targets import RunPaths, add_dir, find_runs, no_runs

TIME = "%Y-%m-%d %H:%M:%S"  # local time
# The line of a resume in train.log, for runs of versions without events.jsonl.
RESUMED = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+\] resuming from .*, step (\d+)\n?")


@dataclass(frozen=True)
class RunNode:
    """A run in the tree; `history` has a line for each event, in the order of time."""

    directory: Path
    id: str
    parent: ParentRun | None
    title: str
    history: list[str]
    forks: list["RunNode"] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    """Print the tree."""
    nodes = [_node(paths) for paths in find_runs(args.dir)]
    for root in attach_forks(nodes):
        print("\n".join([*tree_lines(root), ""]))
    if not nodes:
        print(no_runs(args.dir))
    return 0


def attach_forks(nodes: list[RunNode]) -> list[RunNode]:
    """Add each fork to its parent; return the runs whose parent is not among `nodes`."""
    roots: list[RunNode] = []
    for child in nodes:
        parents = [other for other in nodes if _is_parent(other, child)]
        # A copy of a run has the same id. The fork records the directory of its parent.
        recorded = child.parent.file if child.parent else ""
        parents.sort(key=lambda other: other.directory.name not in Path(recorded).parts)
        (parents[0].forks if parents else roots).append(child)
    return roots


def tree_lines(node: RunNode) -> list[str]:
    """Return the lines of a run and its forks, indented."""
    lines = [node.title]
    branches = [[line] for line in node.history] + [tree_lines(fork) for fork in node.forks]
    for number, branch in enumerate(branches):
        is_last = number == len(branches) - 1
        lines.append(("└─ " if is_last else "├─ ") + branch[0])
        lines += [("   " if is_last else "│  ") + line for line in branch[1:]]
    return lines


def _is_parent(other: RunNode, child: RunNode) -> bool:
    """Return whether `child` records `other` as its parent, unless that makes a cycle."""
    return child.parent is not None and other.id == child.parent.id and not _descends(other, child)


def _descends(node: RunNode, ancestor: RunNode) -> bool:
    return node is ancestor or any(_descends(node, fork) for fork in ancestor.forks)


def _node(paths: RunPaths) -> RunNode:
    checkpoints = list_checkpoints(paths)
    readable = [checkpoint for checkpoint in checkpoints if not checkpoint.error]
    current = [item for item in readable if item.group is not ListGroup.ABANDONED]
    newest = max(current or readable, key=lambda item: item.step or 0, default=None)
    identity = newest.meta.run if newest else None
    parent = identity.parent if identity else None
    title = str(paths.directory)
    if newest is None:
        title += ": no readable checkpoint"
    else:
        best = newest.meta.best_val_loss
        title += f" ({newest.meta.run.id or '?'}): step {newest.step}"
        title += f", best val {best:.4f}" if best is not None else ""
    forked = [f"forked from run {_printable(parent.id)} at step {parent.step}"] if parent else []
    history = forked + _history(paths.directory, checkpoints)
    return RunNode(paths.directory, identity.id if identity else "", parent, title, history)


def _history(directory: Path, checkpoints: list[ListedCheckpoint]) -> list[str]:
    """Return a line with the local time for each event of a run, in the order of time."""
    events: list[dict[str, Any]] = []
    with suppress(OSError):
        events = read_events(directory)
    lines = _resumes_in_log(directory / LOG, before=_time_of(events[0]) if events else "9999")
    lines += _archived(checkpoints)
    for event in events:
        step = _printable(event["step"])
        if event["event"] == "run_resumed":
            lines.append((_time_of(event), f"resumed from step {step}"))
        elif event["event"] == "rolled_back":
            start, reason = _printable(event.get("from_step")), _printable(event.get("reason"))
            lines.append((_time_of(event), f"rolled back from step {start} to {step}: {reason}"))
    return [f"{when} {what}" for when, what in sorted(lines, key=lambda line: line[0])]


def _archived(checkpoints: list[ListedCheckpoint]) -> list[tuple[str, str]]:
    """Return a line for each folder of archived checkpoints."""
    steps: dict[Path, list[int]] = {}
    for checkpoint in checkpoints:
        if checkpoint.group is ListGroup.ABANDONED:
            steps.setdefault(checkpoint.path.parent, []).append(checkpoint.step or 0)
    lines = []
    for folder, found in steps.items():
        first, last = min(found), max(found)
        span = f"steps {first} to {last}" if first < last else f"step {first}"
        when = "?"
        with suppress(ValueError):
            moved_at = "_".join(folder.name.split("_")[1:3])
            when = f"{datetime.strptime(moved_at, '%Y%m%d_%H%M%S'):{TIME}}"
        lines.append((when, f"{span} archived in {folder.name}"))
    return lines


def _resumes_in_log(path: Path, before: str) -> list[tuple[str, str]]:
    """Return the resumes in train.log before the first event of events.jsonl."""
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        found = [(match[1], match[2]) for match in map(RESUMED.fullmatch, file) if match]
        return [(when, f"resumed from step {step}") for when, step in found if when < before]
    return []


def _time_of(event: dict[str, Any]) -> str:
    moment = parse_moment(str(event["time"]))
    return f"{moment:{TIME}}" if moment else "?"


def _printable(value: object) -> str:
    """Return text without the control characters that a file may hold."""
    return str(value) if str(value).isprintable() else repr(value)


SUBCOMMAND = Subcommand(
    "show the family tree: runs, resumes, rollbacks and forks",
    ("", "outputs/gpt2_run_20251106_143022"),
    add_dir,
    run,
)
