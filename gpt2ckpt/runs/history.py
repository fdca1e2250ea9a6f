"""Truncate metrics.jsonl to the step that a run resumes from: one history per directory.

Lines of steps that are trained again with the same settings move to .replay.jsonl, and are compared
there. Lines of abandoned steps move to the folder of the archived checkpoints, and damaged lines to
a quarantine folder.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from gpt2ckpt.checkpoint.archive_folders import ABANDONED, CORRUPT, unused_folder
from gpt2ckpt.checkpoint.state import RunIdentity
from gpt2ckpt.files import durable
from gpt2ckpt.files.permissions import unreadable_message
from gpt2ckpt.loggers import metrics_file
from gpt2ckpt.loggers.metrics_lines import DamagedLine, Line, Lines, join
from gpt2ckpt.runs.expected_losses import continued, due, intervals_of, listed
from gpt2ckpt.runs.layout import CHECKPOINTS, HISTORY, LINEAGE, REPLAY
from gpt2ckpt.runs.wandb_lineage import WandbLineage, WandbRun, decode, encode, settings_digest
from gpt2ckpt.units import plural

Events = list[Line]
SHOWN = 5  # damaged lines whose number and reason are printed


@dataclass(frozen=True)
class Point:
    """Where a run resumes: after `step`, from the file `source`; 0 and None for a new run."""

    step: int = 0
    source: Path | None = None

    @cached_property
    def branch(self) -> Events:
        """The archived lines that belong to `source`, if it is an archived checkpoint."""
        if self.source is None or not self.source.parent.name.startswith(ABANDONED):
            return []
        return metrics_file.read_lines(self.source.parent / HISTORY).events

    @property
    def shared_step(self) -> int:
        """The last step that the state in `source` shares with the present history of the run."""
        return min([self.step, *(line.step - 1 for line in self.branch)])


@dataclass(frozen=True)
class Past:
    """The records of a run directory; `lineage` is None if that file is missing or damaged."""

    directory: Path
    logged: Lines
    waiting: Lines
    lineage: WandbLineage | None

    @classmethod
    def of(cls, directory: Path) -> "Past":
        """Read the records of `directory`. Raises OSError."""
        logged, waiting = (metrics_file.read_lines(directory / name) for name in (HISTORY, REPLAY))
        return cls(directory, logged, waiting, _read_lineage(directory))

    def problems(self, point: Point) -> list[str]:
        """Return a line for each problem of the history up to `point`."""
        path = self.directory / HISTORY
        logged = [line.event for line in self.logged.events if line.step <= point.step]
        if point.step and not self.logged.events:
            state = "holds no lines" if path.exists() else "is missing"
            return [f"{path} {state}: the history of this run begins after step {point.step}"]
        found = []
        if not self.logged.is_sorted:
            found.append(f"{path}: its lines were not in the order of their steps: sorted")
        expected = due(self.lineage.logged if self.lineage else (), point.shared_step)
        for key, steps in zip(("train_loss", "val_loss"), expected, strict=True):
            missing = steps - {event["step"] for event in logged if key in event}
            if missing:
                many = plural(len(missing), "step")
                found.append(f"{path} lacks the {key} of {many}: {listed(missing)}")
        return found


def identity_in(directory: Path, identity: RunIdentity) -> RunIdentity:
    """Return `identity` with the ids that the run in `directory` recorded at its last resume."""
    lineage = _read_lineage(directory)
    if lineage is None:
        return identity
    linked = lineage.active if lineage.active != lineage.run_id else None
    return replace(identity, id=lineage.run_id, wandb_id=linked)


def run_id_in(directory: Path) -> str | None:
    """Return the id of the run in `directory`; None if it is not recorded."""
    lineage = _read_lineage(directory)
    return lineage.run_id if lineage else None


def forked_from(directory: Path) -> Path | None:
    """Return the file that the run in `directory` was forked from; None for other runs."""
    lineage = _read_lineage(directory)
    return Path(lineage.forked_from) if lineage and lineage.forked_from else None


def origin_in(directory: Path) -> tuple[str, int] | None:
    """Return the id of the W&B run that the active one is linked to, and their last shared step."""
    lineage = _read_lineage(directory)
    return lineage.active_run.origin if lineage else None


def start_history(
    directory: Path,
    identity: RunIdentity,
    frozen: dict[str, Any],
    follows: datetime | None = None,
) -> None:
    """Record the settings of a new run. Raises OSError.

    If the clock was set back, the run counts as trained after the time `follows`.
    """
    lineage = WandbLineage(
        run_id=identity.id,
        active=identity.id,
        by_id={identity.id: WandbRun([(0, settings_digest(frozen))])},
        forked_from=str(Path(identity.parent.file).absolute()) if identity.parent else None,
        logged=(intervals_of(0, frozen),),
        follows=follows,
    )
    _write_lineage(directory, lineage)


def continue_history(
    past: Past,
    identity: RunIdentity,
    point: Point,
    *,
    saved: dict[str, Any],
    frozen: dict[str, Any],
    archive: Path | None,
    follows: datetime | None = None,
) -> list[str]:
    """Truncate the history to the point from which the run resumes.

    Each file is replaced atomically, and a line is written elsewhere before it is removed: a kill
    at any instant loses nothing.

    Args:
        past: The records of the run directory.
        identity: The run.
        point: Where the run resumes.
        saved: The config of the saved state.
        frozen: The config to train with.
        archive: The folder of the archived checkpoints, if any were archived.
        follows: The same as for `start_history`.

    Returns:
        The lines to print.

    Raises:
        OSError: A file cannot be written.
    """
    notices = [*past.problems(point), *_quarantine(past)]
    settings, directory = settings_digest(frozen), past.directory
    own = identity.wandb_id or identity.id
    before = past.lineage or WandbLineage(
        identity.id, own, {own: WandbRun([(0, settings_digest(saved))])}
    )
    own = own if point.source else before.run_id
    logged, waiting = past.logged.events, past.waiting.events
    before = before.logged_to(max((line.step for line in logged + waiting), default=0))
    _write_lineage(directory, before)

    branch, shared = point.branch, point.shared_step
    lost = _after(shared, _joined(waiting, logged))
    again = _after(point.step, branch) if branch else lost
    run = before.by_id.get(own, before.active_run) if branch else before.active_run
    same = list(takewhile(lambda line: run.settings_of(line.step) == settings, again))
    if lost and (archive or branch or same != again):
        if archive is None:
            archive = unused_folder(directory / CHECKPOINTS, ABANDONED, datetime.now())
            durable.make_directory(archive)
        durable.write(archive / HISTORY, join(lost))
    if not (archive or branch):
        same = [*_until(point.step, waiting), *same]
    _write_replay(directory / REPLAY, same)
    kept = join([*_until(shared, logged), *_until(point.step, branch)])
    if kept != past.logged.content:
        durable.write(directory / HISTORY, kept)
    after = before.continue_from(own, point.step, settings)
    parts = continued(before.logged, intervals_of(point.step, frozen), shared)
    _write_lineage(directory, replace(after, logged=parts, follows=follows or before.follows))
    if after.active not in before.by_id and frozen["logger"].get("wandb"):
        notices.append(_notice(after))
    return notices


def _quarantine(past: Past) -> list[str]:
    """Copy damaged lines and files to a quarantine folder; return a line for each file."""
    damaged = {HISTORY: past.logged.damaged, REPLAY: past.waiting.damaged}
    contents = {name: b"".join(line.content for line in of) for name, of in damaged.items() if of}
    reasons = {name: _reasons(of) for name, of in damaged.items() if of}
    if past.lineage is None:
        with suppress(FileNotFoundError):
            contents[LINEAGE] = (past.directory / LINEAGE).read_bytes()
            reasons[LINEAGE] = "damaged: a linked W&B run is no longer known"
    if not contents:
        return []
    folder = unused_folder(past.directory / CHECKPOINTS, CORRUPT, datetime.now())
    durable.make_directory(folder)
    for name, content in contents.items():
        durable.write(folder / name, content)
    return [
        f"{past.directory / name}: {reason}; kept in {folder / name}"
        for name, reason in reasons.items()
    ]


def _reasons(damaged: list[DamagedLine]) -> str:
    """Return the numbers of damaged lines with their reasons; only the first of many lines."""
    shown = "; ".join(f"line {line.number}: {line.reason}" for line in damaged[:SHOWN])
    more = f"; and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
    return f"{plural(len(damaged), 'damaged line')} removed ({shown}{more})"


def _notice(lineage: WandbLineage) -> str:
    assert lineage.active_run.origin is not None
    name, step = lineage.active_run.origin
    return (
        f"W&B cannot rewrite the steps after {step} that its run {name} has with other settings: "
        f"this run continues in the linked W&B run {lineage.active}"
    )


def _after(step: int, events: Events) -> Events:
    return [line for line in events if line.step > step]


def _until(step: int, events: Events) -> Events:
    return [line for line in events if line.step <= step]


def _joined(first: Events, second: Events) -> Events:
    """Merge both by step; a line of `first` replaces the line of `second` for the same event."""
    known = {line.kind for line in first}
    return sorted(
        [*first, *(line for line in second if line.kind not in known)], key=lambda line: line.step
    )


def _write_replay(path: Path, events: Events) -> None:
    if events:
        durable.write(path, join(events))
    else:
        durable.delete([path])


def _read_lineage(directory: Path) -> WandbLineage | None:
    path = directory / LINEAGE
    try:
        return decode(path.read_text())
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None
    except OSError as error:  # the file may name a different run
        raise unreadable_message(path, error) from error


def _write_lineage(directory: Path, lineage: WandbLineage) -> None:
    durable.write(directory / LINEAGE, f"{encode(lineage)}\n".encode())
