"""Which losses metrics.jsonl must hold, computed from how often each process of a run logged.

A config sets how often a process logs, and not from which step on: each process records both. No
loss is expected for steps without such a record. All functions here are pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LogIntervals:
    """Losses are logged every `train` and `val` steps after the step `after`; 0 is never."""

    after: int
    train: int = 0
    val: int = 0


def intervals_of(step: int, frozen: Mapping[str, Any]) -> LogIntervals:
    """Return the intervals of a process that trains with the config `frozen` after `step`."""
    trainer = frozen["trainer"]
    return LogIntervals(step, int(trainer["log_every"]), int(trainer["eval_every"]))


def continued(
    parts: Sequence[LogIntervals], new: LogIntervals, shared: int | None = None
) -> tuple[LogIntervals, ...]:
    """Return the intervals of a run that resumes with `new`.

    The run resumes on a branch, whose intervals between the step `shared` and the resume are not
    recorded. `shared` is None without a branch.
    """
    shared = new.after if shared is None else shared
    kept = [part for part in parts if part.after < shared]
    gap = [LogIntervals(shared)] if shared < new.after else []
    return (*kept, *gap, new)


def due(parts: Sequence[LogIntervals], until: int) -> tuple[set[int], set[int]]:
    """Return the steps up to `until` that must have a training loss, and a validation loss.

    A process can stop between its last step and the evaluation after that step, so no validation
    loss is expected there.
    """
    train: set[int] = set()
    val: set[int] = set()
    ends = [part.after for part in parts[1:]]
    for part, end in zip(parts, [*ends, until], strict=False):
        last = min(end, until)
        train |= _multiples(part.train, part.after + 1, last)
        val |= _multiples(part.val, part.after + 1, last - 1)
    return train, val


def _multiples(every: int, first: int, last: int) -> set[int]:
    first = max(first, 1)
    return set(range(-(-first // every) * every, last + 1, every)) if every > 0 else set()


def listed(steps: Iterable[int], shown: int = 5) -> str:
    """Return steps as text: the first few, and the last one."""
    ordered = sorted(steps)
    named = [f"{step:,}" for step in ordered[:shown]]
    return ", ".join(named) + (f", … {ordered[-1]:,}" if len(ordered) > shown else "")
