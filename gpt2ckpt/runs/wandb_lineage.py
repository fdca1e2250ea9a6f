"""The W&B runs of a run: which settings trained which steps, and in which W&B run they are.

A step that is trained again has the same loss if its settings are the same. W&B cannot rewrite a
logged step. So a run that goes back to an older step with different settings continues as a new W&B
run, linked to the one that it leaves. All functions here are pure.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from gpt2ckpt.config.options import Effect
from gpt2ckpt.config.replay import Values, classify, flatten
from gpt2ckpt.runs.expected_losses import LogIntervals

SAME_UP_TO_ROUNDING = tuple(
    f"trainer.{key}" for key in ("device", "threads", "compile", "deterministic")
)


@dataclass(frozen=True)
class WandbRun:
    """A W&B run and the settings of its steps.

    Attributes:
        parts: Pairs of a step and the digest of the settings that trained the steps after it.
        furthest: The last logged step.
        origin: The id of the W&B run that a linked one left, and their last shared step.
    """

    parts: list[tuple[int, str]]
    furthest: int = 0
    origin: tuple[str, int] | None = None

    def settings_of(self, step: int) -> str | None:
        """Return the digest of the settings that trained `step`."""
        held = [settings for start, settings in self.parts if start < step]
        return held[-1] if held else None

    def fits(self, step: int, settings: str) -> bool:
        """Return whether training with `settings` after `step` reproduces the logged losses."""
        if self.furthest <= step:
            return True
        later = [part for start, part in self.parts if step < start < self.furthest]
        return {self.settings_of(step + 1), *later} == {settings}

    def continued(self, step: int, settings: str) -> "WandbRun":
        """Return this W&B run up to `step`, with `settings` after it."""
        parts = [part for part in self.parts if part[0] < step]
        if not parts or parts[-1][1] != settings:
            parts.append((step, settings))
        return replace(self, parts=parts)


@dataclass(frozen=True)
class WandbLineage:
    """The past of a run, as its directory records it.

    Attributes:
        run_id: The id of the run.
        active: The id of the W&B run that has the history in metrics.jsonl.
        by_id: All W&B runs of the run.
        forked_from: The file that a fork started from.
        logged: How often its processes log losses, as far as that is known.
        follows: The time after which the run counts as trained, if the clock was set back at its
            start.
    """

    run_id: str
    active: str
    by_id: dict[str, WandbRun] = field(default_factory=dict)
    forked_from: str | None = None
    logged: tuple[LogIntervals, ...] = ()
    follows: datetime | None = None

    @property
    def active_run(self) -> WandbRun:
        """The active W&B run."""
        return self.by_id[self.active]

    def logged_to(self, step: int) -> "WandbLineage":
        """Return the lineage, in which the active W&B run has logged the steps up to `step`."""
        known = replace(self.active_run, furthest=max(self.active_run.furthest, step))
        return replace(self, by_id={**self.by_id, self.active: known})

    def continue_from(self, own: str, step: int, settings: str) -> "WandbLineage":
        """Return the lineage of a run that resumes after `step` from a state of the W&B run `own`.

        A W&B run that fits is continued. Otherwise a linked W&B run starts. Its id is a digest, so
        that the same command has the same id again after a kill before its first save.
        """
        by_id, name = dict(self.by_id), own
        by_id.setdefault(own, WandbRun([(0, settings)]))
        while not by_id[name].fits(step, settings):
            text = f"{name} {step} {settings}"
            linked = f"{self.run_id}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
            by_id.setdefault(linked, WandbRun(by_id[name].parts, step, origin=(name, step)))
            name = linked
        if by_id[name].furthest <= step:
            by_id[name] = by_id[name].continued(step, settings)
        return replace(self, active=name, by_id=by_id)


def settings_digest(frozen: Values) -> str:
    """Return a digest that is equal for configs that train the same, except for rounding."""
    flat = flatten(frozen)
    moving = {
        key: value
        for key, value in flat.items()
        if classify(key, flat) is not Effect.HARMLESS and key not in SAME_UP_TO_ROUNDING
    }
    text = json.dumps(moving, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encode(lineage: WandbLineage) -> str:
    """Return the lineage as JSON."""
    by_id = {
        name: {"parts": run.parts, "furthest": run.furthest, "origin": run.origin}
        for name, run in lineage.by_id.items()
    }
    values: dict[str, Any] = {"run_id": lineage.run_id, "active": lineage.active, "curves": by_id}
    values["logged"] = [(part.after, part.train, part.val) for part in lineage.logged]
    if lineage.forked_from is not None:
        values["forked_from"] = lineage.forked_from
    if lineage.follows is not None:
        values["follows"] = lineage.follows.isoformat()
    return json.dumps(values, indent=1)


def decode(text: str) -> WandbLineage | None:
    """Return the lineage that `encode` wrote as JSON; None for any other text."""
    try:
        values = json.loads(text)
        by_id = {str(name): _wandb_run(value) for name, value in values["curves"].items()}
        origin = values.get("forked_from")
        forked_from = None if origin is None else str(origin)
        logged = tuple(LogIntervals(*map(int, part)) for part in values.get("logged", ()))
        after = values.get("follows")
        lineage = WandbLineage(
            run_id=str(values["run_id"]),
            active=str(values["active"]),
            by_id=by_id,
            forked_from=forked_from,
            logged=logged,
            follows=None if after is None else datetime.fromisoformat(after),
        )
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
        return None
    return lineage if lineage.active in by_id else None


def _wandb_run(value: Mapping[str, Any]) -> WandbRun:
    origin = value["origin"]
    return WandbRun(
        [(int(start), str(settings)) for start, settings in value["parts"]],
        int(value["furthest"]),
        (str(origin[0]), int(origin[1])) if origin else None,
    )
