"""Which settings trained which steps of a run, and under which W&B run each was sent.

W&B, and whoever compares losses, must know whether a step that is trained again will have the value
that it had. It has where the settings are the same; where a run goes back to an older step with
others, W&B cannot rewrite what it has, and the continuation is sent as a run of its own: a curve.
Everything here is decided without touching a file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from gpt2ckpt.config.replay import Effect, Values, classify, flatten
from gpt2ckpt.runs.cadence import Cadence

SAME_UP_TO_ROUNDING = tuple(
    f"trainer.{key}" for key in ("device", "threads", "compile", "deterministic")
)


@dataclass(frozen=True)
class WandbRun:
    """What was sent under one W&B id: `parts` are (the step after which they hold, settings).

    `furthest` is the last step that was logged. A linked curve has its `origin`: the id of the one
    that it left, and the last step that they share.
    """

    parts: list[tuple[int, str]]
    furthest: int = 0
    origin: tuple[str, int] | None = None

    def settings_of(self, step: int) -> str | None:
        """The settings that trained `step`."""
        held = [settings for start, settings in self.parts if start < step]
        return held[-1] if held else None

    def fits(self, step: int, settings: str) -> bool:
        """Whether all that was sent after `step` is what `settings` would give again."""
        if self.furthest <= step:
            return True
        later = [part for start, part in self.parts if step < start < self.furthest]
        return {self.settings_of(step + 1), *later} == {settings}

    def continued(self, step: int, settings: str) -> "WandbRun":
        """This curve up to `step`, and `settings` from there on."""
        parts = [part for part in self.parts if part[0] < step]
        if not parts or parts[-1][1] != settings:
            parts.append((step, settings))
        return replace(self, parts=parts)


@dataclass(frozen=True)
class WandbLineage:
    """All curves of a run by their W&B id, and the `active` one, which metrics.jsonl shows.

    `forked_from` is the file that a fork was started from; `logged` says how often its processes
    log losses, for those steps of which that is known. `follows` is a time that the run counts as
    trained after: the clock was behind the runs beside it when it started.
    """

    run_id: str
    active: str
    by_id: dict[str, WandbRun] = field(default_factory=dict)
    forked_from: str | None = None
    logged: tuple[Cadence, ...] = ()
    follows: datetime | None = None

    @property
    def active_run(self) -> WandbRun:
        """The active curve."""
        return self.by_id[self.active]

    def logged_to(self, step: int) -> "WandbLineage":
        """The same, after it was found that the active curve goes as far as `step`."""
        known = replace(self.active_run, furthest=max(self.active_run.furthest, step))
        return replace(self, by_id={**self.by_id, self.active: known})

    def continue_from(self, own: str, step: int, settings: str) -> "WandbLineage":
        """The curves of a run that goes on after `step`, from a state of the curve `own`.

        A curve that fits is kept. Else a linked one is begun, whose id follows from what it is, so
        that the same command gives the same id again if it is killed before its first save.
        """
        by_id, name = dict(self.by_id), own
        by_id.setdefault(own, WandbRun([(0, settings)]))
        while not by_id[name].fits(step, settings):
            text = f"{name} {step} {settings}"
            linked = f"{self.run_id}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
            by_id.setdefault(linked, WandbRun(by_id[name].parts, step, origin=(name, step)))
            name = linked
        curve = by_id[name]
        if curve.furthest <= step:
            by_id[name] = curve.continued(step, settings)
        return replace(self, active=name, by_id=by_id)


def settings_digest(frozen: Values) -> str:
    """The same for two configs exactly where they train the same, but for rounding."""
    flat = flatten(frozen)
    moving = {
        key: value
        for key, value in flat.items()
        if classify(key, flat) is not Effect.HARMLESS and key not in SAME_UP_TO_ROUNDING
    }
    text = json.dumps(moving, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encode(curves: WandbLineage) -> str:
    """As JSON."""
    by_id = {
        name: {"parts": curve.parts, "furthest": curve.furthest, "origin": curve.origin}
        for name, curve in curves.by_id.items()
    }
    values: dict[str, Any] = {"run_id": curves.run_id, "active": curves.active, "curves": by_id}
    values["logged"] = [(part.after, part.train, part.val) for part in curves.logged]
    if curves.forked_from is not None:
        values["forked_from"] = curves.forked_from
    if curves.follows is not None:
        values["follows"] = curves.follows.isoformat()
    return json.dumps(values, indent=1)


def decode(text: str) -> WandbLineage | None:
    """The inverse of `encode`; None for what is no such thing."""
    try:
        values = json.loads(text)
        by_id = {str(name): _curve(value) for name, value in values["curves"].items()}
        origin = values.get("forked_from")
        forked_from = None if origin is None else str(origin)
        logged = tuple(Cadence(*map(int, part)) for part in values.get("logged", ()))
        after = values.get("follows")
        curves = WandbLineage(
            run_id=str(values["run_id"]),
            active=str(values["active"]),
            by_id=by_id,
            forked_from=forked_from,
            logged=logged,
            follows=None if after is None else datetime.fromisoformat(after),
        )
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
        return None
    return curves if curves.active in by_id else None


def _curve(value: Mapping[str, Any]) -> WandbRun:
    origin = value["origin"]
    return WandbRun(
        [(int(start), str(settings)) for start, settings in value["parts"]],
        int(value["furthest"]),
        (str(origin[0]), int(origin[1])) if origin else None,
    )
