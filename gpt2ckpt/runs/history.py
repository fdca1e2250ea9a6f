"""One history per run directory: what metrics.jsonl keeps when a run goes on, where the rest is.

Lines of steps that are trained again with the same settings wait in a file beside it, to be
compared. Lines of what is abandoned go to the folder that the abandoned checkpoints are in.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from gpt2ckpt.checkpoint.aside import ABANDONED, free_name
from gpt2ckpt.files import durable
from gpt2ckpt.loggers import metrics_file
from gpt2ckpt.runs.curves import Curve, Curves, decode, encode, settings_digest
from gpt2ckpt.runs.layout import CHECKPOINTS, CURVES, HISTORY, REPLAY

Events = list[dict[str, Any]]


@dataclass(frozen=True)
class RunIdentity:
    """Which run a state belongs to; `parent` says what it was forked from.

    `wandb_id` is what W&B knows it by, if that is not `id`.
    """

    id: str
    name: str
    parent: dict[str, Any] | None = None
    wandb_id: str | None = None


@dataclass(frozen=True)
class Point:
    """Where a run goes on: after `step` of the state in `source`; 0 and None begin it."""

    step: int = 0
    source: Path | None = None

    @property
    def branch(self) -> Events:
        """What was logged after the run had gone back, if `source` was abandoned by that."""
        if self.source is None or not self.source.parent.name.startswith(ABANDONED):
            return []
        path = self.source.parent / HISTORY
        return metrics_file.read(path) if path.exists() else []

    @property
    def shared_step(self) -> int:
        """The last step that `source` shares with the history of the run as it is now."""
        return min([self.step, *(int(event["step"]) - 1 for event in self.branch)])


def identity_in(directory: Path, identity: RunIdentity) -> RunIdentity:
    """`identity` as the run in `directory` recorded it when it went on."""
    curves = _read_curves(directory)
    if curves is None:
        return identity
    linked = curves.active if curves.active != curves.run_id else None
    return replace(identity, id=curves.run_id, wandb_id=linked)


def run_id_in(directory: Path) -> str | None:
    """The id of the run that `directory` belongs to; None if nothing is recorded."""
    curves = _read_curves(directory)
    return curves.run_id if curves else None


def forked_from(directory: Path) -> Path | None:
    """The file that the run in `directory` was started from, if it is a fork."""
    curves = _read_curves(directory)
    return Path(curves.forked_from) if curves and curves.forked_from else None


def origin_in(directory: Path) -> tuple[str, int] | None:
    """The W&B run that the active one was split off from, and the last step that they share."""
    curves = _read_curves(directory)
    return curves.curve.origin if curves else None


def begin(directory: Path, identity: RunIdentity, frozen: dict[str, Any]) -> None:
    """Record the first settings of a new run. Raises OSError."""
    first = {identity.id: Curve([(0, settings_digest(frozen))])}
    origin = str(Path(identity.parent["file"]).absolute()) if identity.parent else None
    _write_curves(directory, Curves(identity.id, identity.id, first, origin))


def gap(directory: Path, step: int) -> str:
    """What the user has to know where nothing is left of the history up to `step`."""
    path = directory / HISTORY
    if step == 0 or _read(path):
        return ""
    state = "holds no events" if path.exists() else "is gone"
    return f"{path} {state}: the history of this run begins after step {step}"


def go_on(
    directory: Path,
    identity: RunIdentity,
    point: Point,
    *,
    saved: dict[str, Any],
    frozen: dict[str, Any],
    aside: Path | None,
) -> str:
    """Bring the history to `point`, from which the run goes on with `frozen` instead of `saved`.

    `aside` is where checkpoints were moved that are abandoned. Returns what the user has to know.
    Each file is replaced in one piece, and nothing is dropped before it is kept elsewhere: a kill
    in between costs nothing. Raises OSError.
    """
    settings, path = settings_digest(frozen), directory / HISTORY
    own = identity.wandb_id or identity.id
    before = _read_curves(directory) or Curves(
        identity.id, own, {own: Curve([(0, settings_digest(saved))])}
    )
    own = own if point.source else before.run_id
    logged, waiting = _read(path), _read(directory / REPLAY)
    before = before.logged_to(max((event["step"] for event in logged + waiting), default=0))
    _write_curves(directory, before)

    branch, shared = point.branch, point.shared_step
    lost = _after(shared, _joined(waiting, logged))
    again = _after(point.step, branch) if branch else lost
    curve = before.by_id.get(own, before.curve) if branch else before.curve
    same = list(takewhile(lambda event: curve.settings_of(event["step"]) == settings, again))
    if lost and (aside or branch or same != again):
        if aside is None:
            aside = free_name(directory / CHECKPOINTS, ABANDONED, datetime.now())
            durable.make_directory(aside)
        _write_lines(aside / HISTORY, lost)
    if not (aside or branch):
        same = [*_until(point.step, waiting), *same]
    _write_replay(directory / REPLAY, same)
    if branch:
        _write_lines(path, [*_until(shared, logged), *_until(point.step, branch)])
    else:
        metrics_file.rewind(path, point.step)
    after = before.go_on(own, point.step, settings)
    _write_curves(directory, after)
    return _notice(after) if after.active not in before.by_id else ""


def _notice(curves: Curves) -> str:
    assert curves.curve.origin is not None
    name, step = curves.curve.origin
    return (
        f"W&B cannot rewrite the steps after {step} that its run {name} has with other settings: "
        f"from here on this is its run {curves.active}, linked to that one"
    )


def _read(path: Path) -> Events:
    return metrics_file.read(path) if path.exists() else []


def _after(step: int, events: Events) -> Events:
    return [event for event in events if event["step"] > step]


def _until(step: int, events: Events) -> Events:
    return [event for event in events if event["step"] <= step]


def _joined(first: Events, second: Events) -> Events:
    """Both, in the order of steps; what the first has of a step is what counts."""
    known = {event["step"] for event in first}
    return sorted(
        [*first, *(event for event in second if event["step"] not in known)],
        key=lambda event: int(event["step"]),
    )


def _write_replay(path: Path, events: Events) -> None:
    if events:
        _write_lines(path, events)
    else:
        durable.delete([path])


def _write_lines(path: Path, events: Iterable[dict[str, Any]]) -> None:
    durable.write(path, "".join(f"{metrics_file.encode(event)}\n" for event in events).encode())


def _read_curves(directory: Path) -> Curves | None:
    with suppress(OSError, UnicodeDecodeError):
        return decode((directory / CURVES).read_text())
    return None


def _write_curves(directory: Path, curves: Curves) -> None:
    durable.write(directory / CURVES, f"{encode(curves)}\n".encode())
