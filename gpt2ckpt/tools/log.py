"""`log`: the family tree of runs: how they began, were resumed, rolled back and forked."""

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from gpt2ckpt.checkpoint.state import ParentRun
from gpt2ckpt.runs.layout import LOG
from gpt2ckpt.tools import formatting
from gpt2ckpt.tools.command_line import Verb
from gpt2ckpt.tools.inventory import ListedCheckpoint, ListGroup, scan
from gpt2ckpt.tools.targets import DIR_HELP, Run, find_runs, no_runs

# As training writes it; the date is of the form that conf/train.yaml gives the log.
RESUMED = re.compile(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+\] resuming from .*, step (\d+)\n?")


@dataclass(frozen=True)
class Lineage:
    """A run, what happened to it in the order of time, and the runs that were forked from it."""

    run: Run
    id: str
    parent: ParentRun | None
    title: str
    events: list[str]
    forks: list["Lineage"] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of `log`."""
    parser.add_argument("dir", metavar="DIR", nargs="?", type=Path, help=DIR_HELP)


def run(args: argparse.Namespace) -> int:
    """Print the tree."""
    lineages = [_lineage(run, scan(run)) for run in find_runs(args.dir)]
    for root in family(lineages):
        print("\n".join([*tree(root), ""]))
    if not lineages:
        print(no_runs(args.dir))
    return 0


def family(lineages: list[Lineage]) -> list[Lineage]:
    """Hang every fork under its parent; returns those whose parent is not among them."""
    roots: list[Lineage] = []
    for child in lineages:
        parents = [other for other in lineages if _is_parent(other, child)]
        # Of a run and its copy it is the one that the fork names.
        named = child.parent.file if child.parent else ""
        parents.sort(key=lambda other: other.run.directory.name not in Path(named).parts)
        (parents[0].forks if parents else roots).append(child)
    return roots


def tree(node: Lineage) -> list[str]:
    """The lines of a run and its forks, indented."""
    lines = [node.title]
    branches = [[event] for event in node.events] + [tree(fork) for fork in node.forks]
    for number, branch in enumerate(branches):
        is_last = number == len(branches) - 1
        lines.append(("└─ " if is_last else "├─ ") + branch[0])
        lines += [("   " if is_last else "│  ") + line for line in branch[1:]]
    return lines


def _is_parent(other: Lineage, child: Lineage) -> bool:
    """Whether `child` says so; a file that says that a run is its own ancestor is not believed."""
    return child.parent is not None and other.id == child.parent.id and not _descends(other, child)


def _descends(node: Lineage, ancestor: Lineage) -> bool:
    return node is ancestor or any(_descends(node, fork) for fork in ancestor.forks)


def _lineage(run: Run, entries: list[ListedCheckpoint]) -> Lineage:
    readable = [entry for entry in entries if not entry.error]
    current = [entry for entry in readable if entry.group is not ListGroup.ABANDONED]
    newest = max(current or readable, key=lambda entry: entry.step or 0, default=None)
    identity = newest.meta.run if newest else None
    parent = identity.parent if identity else None
    title = str(run.directory)
    if newest is None:
        title += ": no readable checkpoint"
    else:
        best = newest.meta.best_val_loss
        title += f" ({newest.meta.run.id or '?'}): step {newest.step}"
        title += f", best val {formatting.loss(best)}" if best is not None else ""
    fork = [f"forked from run {_plain(parent.id)} at step {parent.step}"] if parent else []
    return Lineage(
        run, identity.id if identity else "", parent, title, fork + _events(run, entries)
    )


def _plain(value: object) -> str:
    """Text without words to the terminal, which a file may hold."""
    return str(value) if str(value).isprintable() else repr(value)


def _events(run: Run, entries: list[ListedCheckpoint]) -> list[str]:
    """Resumes out of the log, and what they abandoned, each with its time."""
    events = [(when, f"resumed from step {step}") for when, step in _resumes(run.directory / LOG)]
    folders: dict[Path, list[int]] = {}
    for entry in entries:
        if entry.group is ListGroup.ABANDONED:
            folders.setdefault(entry.path.parent, []).append(entry.step or 0)
    for folder, steps in folders.items():
        moment = _moment_of(folder.name)
        first, last = min(steps), max(steps)
        span = f"steps {first} to {last}" if first < last else f"step {first}"
        events.append((moment, f"rolled back: {span} set aside in {folder.name}"))
    return [f"{when} {what}" for when, what in sorted(events, key=lambda event: event[0])]


def _resumes(path: Path) -> Iterable[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [(match[1], match[2]) for match in map(RESUMED.fullmatch, file) if match]
    except OSError:
        return []


def _moment_of(name: str) -> str:
    """The time in the name of an abandoned folder, as the log writes times."""
    stamp = "_".join(name.split("_")[1:3])
    try:
        return f"{datetime.strptime(stamp, '%Y%m%d_%H%M%S'):%Y-%m-%d %H:%M:%S}"
    except ValueError:
        return "?"


VERB = Verb(
    "show the family tree: runs, resumes, roll-backs and forks",
    ("", "outputs/gpt2_run_20251106_143022"),
    add_arguments,
    run,
)
