"""One history per run directory: what metrics.jsonl keeps when a run resumes, where the rest is.

Lines of steps that are trained again with the same settings wait in a file beside it, to be
compared. Lines of what is abandoned go to the folder that the abandoned checkpoints are in, damaged
lines to a folder of damaged files.
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
from gpt2ckpt.runs.cadence import cadence_of, continued, due, listed
from gpt2ckpt.runs.layout import CHECKPOINTS, HISTORY, LINEAGE, REPLAY
from gpt2ckpt.runs.wandb_lineage import WandbLineage, WandbRun, decode, encode, settings_digest
from gpt2ckpt.units import plural

Events = list[Line]
SHOWN = 5  # damaged lines that are named one by one


@dataclass(frozen=True)
class Point:
    """Where a run goes on: after `step` of the state in `source`; 0 and None begin it."""

    step: int = 0
    source: Path | None = None

    @cached_property
    def branch(self) -> Events:
        """What was logged after the run had gone back, if `source` was abandoned by that."""
        if self.source is None or not self.source.parent.name.startswith(ABANDONED):
            return []
        return metrics_file.read_lines(self.source.parent / HISTORY).events

    @property
    def shared_step(self) -> int:
        """The last step that `source` shares with the history of the run as it is now."""
        return min([self.step, *(line.step - 1 for line in self.branch)])


@dataclass(frozen=True)
class Past:
    """What a run directory records of its past; `curves` is None if nothing usable is recorded."""

    directory: Path
    logged: Lines
    waiting: Lines
    curves: WandbLineage | None

    @classmethod
    def of(cls, directory: Path) -> "Past":
        """Read it, before anything in the directory is changed. Raises OSError."""
        logged, waiting = (metrics_file.read_lines(directory / name) for name in (HISTORY, REPLAY))
        return cls(directory, logged, waiting, _read_lineage(directory))

    def problems(self, point: Point) -> list[str]:
        """What is wrong with the history up to `point`, a sentence each."""
        path = self.directory / HISTORY
        logged = [line.event for line in self.logged.events if line.step <= point.step]
        if point.step and not self.logged.events:
            state = "holds no events" if path.exists() else "is gone"
            return [f"{path} {state}: the history of this run begins after step {point.step}"]
        found = []
        if not self.logged.is_sorted:
            found.append(f"{path}: its lines were not in the order of their steps, and are sorted")
        expected = due(self.curves.logged if self.curves else (), point.shared_step)
        for key, steps in zip(("train_loss", "val_loss"), expected, strict=True):
            missing = steps - {event["step"] for event in logged if key in event}
            if missing:
                many = plural(len(missing), "step")
                found.append(f"{path} lacks the {key} of {many}: {listed(missing)}")
        return found


def identity_in(directory: Path, identity: RunIdentity) -> RunIdentity:
    """`identity` as the run in `directory` recorded it when it went on."""
    curves = _read_lineage(directory)
    if curves is None:
        return identity
    linked = curves.active if curves.active != curves.run_id else None
    return replace(identity, id=curves.run_id, wandb_id=linked)


def run_id_in(directory: Path) -> str | None:
    """The id of the run that `directory` belongs to; None if nothing is recorded."""
    curves = _read_lineage(directory)
    return curves.run_id if curves else None


def forked_from(directory: Path) -> Path | None:
    """The file that the run in `directory` was started from, if it is a fork."""
    curves = _read_lineage(directory)
    return Path(curves.forked_from) if curves and curves.forked_from else None


def origin_in(directory: Path) -> tuple[str, int] | None:
    """The W&B run that the active one was split off from, and the last step that they share."""
    curves = _read_lineage(directory)
    return curves.active_run.origin if curves else None


def start_history(
    directory: Path,
    identity: RunIdentity,
    frozen: dict[str, Any],
    follows: datetime | None = None,
) -> None:
    """Record the first settings of a new run. Raises OSError.

    `follows` is a time that it counts as trained after, where the clock cannot be trusted.
    """
    first = {identity.id: WandbRun([(0, settings_digest(frozen))])}
    origin = str(Path(identity.parent.file).absolute()) if identity.parent else None
    logged = (cadence_of(0, frozen),)
    curves = WandbLineage(identity.id, identity.id, first, origin, logged, follows)
    _write_lineage(directory, curves)


def continue_history(
    past: Past,
    identity: RunIdentity,
    point: Point,
    *,
    saved: dict[str, Any],
    frozen: dict[str, Any],
    aside: Path | None,
    follows: datetime | None = None,
) -> list[str]:
    """Bring the history to `point`, from which the run resumes with `frozen` instead of `saved`.

    `aside` is the folder of the archived checkpoints; `follows` is as for `start_history`. Returns
    the lines to print. Each file is replaced atomically, and nothing is dropped before it is kept
    elsewhere: a kill in between loses nothing. Raises OSError.
    """
    notices = [*past.problems(point), *_quarantine(past)]
    settings, directory = settings_digest(frozen), past.directory
    own = identity.wandb_id or identity.id
    before = past.curves or WandbLineage(
        identity.id, own, {own: WandbRun([(0, settings_digest(saved))])}
    )
    own = own if point.source else before.run_id
    logged, waiting = past.logged.events, past.waiting.events
    before = before.logged_to(max((line.step for line in logged + waiting), default=0))
    _write_lineage(directory, before)

    branch, shared = point.branch, point.shared_step
    lost = _after(shared, _joined(waiting, logged))
    again = _after(point.step, branch) if branch else lost
    curve = before.by_id.get(own, before.active_run) if branch else before.active_run
    same = list(takewhile(lambda line: curve.settings_of(line.step) == settings, again))
    if lost and (aside or branch or same != again):
        if aside is None:
            aside = unused_folder(directory / CHECKPOINTS, ABANDONED, datetime.now())
            durable.make_directory(aside)
        durable.write(aside / HISTORY, join(lost))
    if not (aside or branch):
        same = [*_until(point.step, waiting), *same]
    _write_replay(directory / REPLAY, same)
    kept = join([*_until(shared, logged), *_until(point.step, branch)])
    if kept != past.logged.content:
        durable.write(directory / HISTORY, kept)
    after = before.continue_from(own, point.step, settings)
    parts = continued(before.logged, cadence_of(point.step, frozen), shared)
    _write_lineage(directory, replace(after, logged=parts, follows=follows or before.follows))
    if after.active not in before.by_id and frozen["logger"]["wandb"]:
        notices.append(_notice(after))
    return notices


def _quarantine(past: Past) -> list[str]:
    """Copy what is damaged to a folder of its own; a sentence for each file."""
    damaged = {HISTORY: past.logged.damaged, REPLAY: past.waiting.damaged}
    contents = {name: b"".join(line.content for line in of) for name, of in damaged.items() if of}
    reasons = {name: _reasons(of) for name, of in damaged.items() if of}
    if past.curves is None:
        with suppress(FileNotFoundError):
            contents[LINEAGE] = (past.directory / LINEAGE).read_bytes()
            reasons[LINEAGE] = "it is damaged, and a linked W&B run is not known any more"
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
    """What is wrong with which lines; of many the first few."""
    shown = "; ".join(f"line {line.number}: {line.reason}" for line in damaged[:SHOWN])
    more = f"; and {len(damaged) - SHOWN} more" if len(damaged) > SHOWN else ""
    return f"{plural(len(damaged), 'damaged line')} taken out ({shown}{more})"


def _notice(curves: WandbLineage) -> str:
    assert curves.active_run.origin is not None
    name, step = curves.active_run.origin
    return (
        f"W&B cannot rewrite the steps after {step} that its run {name} has with other settings: "
        f"from here on this is its run {curves.active}, linked to that one"
    )


def _after(step: int, events: Events) -> Events:
    return [line for line in events if line.step > step]


def _until(step: int, events: Events) -> Events:
    return [line for line in events if line.step <= step]


def _joined(first: Events, second: Events) -> Events:
    """Both, in the order of steps; what the first has of a step is what counts."""
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
    except OSError as error:  # it may say that the run is another one
        raise unreadable_message(path, error) from error


def _write_lineage(directory: Path, curves: WandbLineage) -> None:
    durable.write(directory / LINEAGE, f"{encode(curves)}\n".encode())
