"""Replaying the frozen config of a checkpoint with the command line's overrides on top.

Hydra's overrides are instructions to compose a config, and a frozen config is already composed. So
two configs are composed from today's conf/: one from the overrides that the run has had so far, and
one from these and the new ones. Where the two differ, the new overrides ask for a change; and a key
that is named outright is always applied. Everything else stays as it was frozen, whatever has
become of conf/ since: an override that the run has had and that no longer composes, such as an
experiment whose file was renamed, is left out of both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gpt2ckpt.config.compose import parse_overrides, sets
from gpt2ckpt.config.earlier import in_blocks
from gpt2ckpt.config.recorded import trusted
from gpt2ckpt.config.registry import KINDS
from gpt2ckpt.errors import ConfigError

Values = dict[str, Any]
NOT_FROZEN = ("resume", "fork", "dry_run")
SHAPE = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias", "gelu")
WATCHING = (  # keys, or how keys begin, that no weight depends on
    "name",
    "logger.",
    "checkpoint.",
    "trainer.eval_",
    "trainer.log_every",
    "trainer.sample_",
)
LENGTH = ("trainer.max_steps", "trainer.max_epochs")
EVALUATION_LENGTH = ("trainer.eval_blocks", "trainer.eval_steps")  # two keys for one thing


class Effect(StrEnum):
    """What it does to a training when a key has another value."""

    HARMLESS = "harmless"
    TRAJECTORY = "changes the trajectory"
    SHAPE = "breaks the shape"


@dataclass(frozen=True)
class Change:
    """A key whose value a resume changes, and what that does to the training."""

    key: str
    old: Any
    new: Any
    effect: Effect = Effect.TRAJECTORY

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} → {_shown(self.new)}"


def freeze(values: Values) -> Values:
    """The part of a composed config that a checkpoint keeps."""
    return {key: value for key, value in in_blocks(values).items() if key not in NOT_FROZEN}


def task_overrides(overrides: list[str]) -> list[str]:
    """The overrides that shape a training: not Hydra's own, not which run to resume."""
    return [
        override.input_line
        for override in parse_overrides(overrides)
        if not override.key_or_group.startswith("hydra") and override.key_or_group not in NOT_FROZEN
    ]


def replay(
    frozen: Values, recorded: list[str], new: list[str], compose: Callable[[list[str]], Values]
) -> tuple[Values, list[Change]]:
    """The config to go on with, and what `new` changes in it.

    Raises ConfigError for a change that the saved state cannot follow.
    """
    if not new:
        return frozen, []
    base, lost = _composable_base(frozen, recorded, compose)
    new = [word for word in new if word not in lost]  # given again: its values are frozen
    if not new:
        return frozen, []
    before = flatten(freeze(compose(base)))
    after = flatten(freeze(compose([*base, *new])))
    asked = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    for override in parse_overrides(new):
        named = override.key_or_group
        # A group that is given again, as in the first start's command, asks for no change.
        if "." in named or named in after:
            asked |= {key for key in after if key == named or key.startswith(f"{named}.")}
        if named in KINDS:
            asked.add(f"{named}.kind")
    current = flatten(frozen)
    result = dict(current)
    for group in KINDS:
        kind = f"{group}.kind"
        if kind in asked and current.get(kind) != after.get(kind):
            result = {k: v for k, v in result.items() if not k.startswith(f"{group}.")}
            asked |= {key for key in after if key.startswith(f"{group}.")}
    result |= {key: after[key] for key in asked if key in after}
    changes = difference(current, result)
    _refuse_other_states(changes)
    return unflatten(result), changes


def composable(overrides: list[str], compose: Callable[[list[str]], Values]) -> list[str]:
    """Those of `overrides` that still compose, each on top of those before it."""
    return _composable_after([], overrides, compose)


def _composable_after(
    kept: list[str], rest: list[str], compose: Callable[[list[str]], Values]
) -> list[str]:
    """`kept`, which composes, and what can be added to it of `rest`."""
    try:
        compose([*kept, *rest])
    except ConfigError:
        if len(rest) < 2:
            return kept
        middle = len(rest) // 2
        kept = _composable_after(kept, rest[:middle], compose)
        return _composable_after(kept, rest[middle:], compose)
    return [*kept, *rest]


def _composable_base(
    frozen: Values, recorded: list[str], compose: Callable[[list[str]], Values]
) -> tuple[list[str], list[str]]:
    """Overrides that compose the kinds of the frozen config, and those of `recorded` that are lost.

    A file that is gone may have chosen the kinds, and new overrides are of their keys.
    """
    base = composable(recorded, compose)
    lost = [word for word in recorded if word not in base]
    if lost:
        now, then = flatten(compose(base)), flatten(frozen)
        kinds = [
            f"{group}={kind}"
            for group, known in KINDS.items()
            if (kind := then.get(f"{group}.kind")) in known and kind != now.get(f"{group}.kind")
        ]
        base = _composable_after(base, kinds, compose)
    return base, lost


def still_meant(
    frozen: Values, recorded: list[str], new: list[str], compose: Callable[[list[str]], Values]
) -> list[str]:
    """`recorded` without the settings of what `new` replaces by another kind.

    The list comes out of a file: what is not trusted goes, too.
    """
    recorded = trusted(task_overrides(recorded), frozen)
    for key, other in (EVALUATION_LENGTH, EVALUATION_LENGTH[::-1]):
        if any(sets(word, key) for word in new):
            recorded = [word for word in recorded if not sets(word, other)]
    groups = [o for o in parse_overrides(new) if o.key_or_group in KINDS]
    words = composable([group.input_line for group in groups], compose)
    groups = [group for group in groups if group.input_line in words]  # `replay` names the others
    if not groups:
        return recorded
    before, after = flatten(frozen), flatten(compose(words))
    kinds = (f"{group.key_or_group}.kind" for group in groups)
    gone = tuple(kind.removesuffix("kind") for kind in kinds if before.get(kind) != after.get(kind))
    return [o.input_line for o in parse_overrides(recorded) if not o.key_or_group.startswith(gone)]


def difference(old: Values, new: Values) -> list[Change]:
    """The keys in which two flat configs differ, in order."""
    keys = [*old, *(key for key in new if key not in old)]
    return [
        Change(k, old.get(k), new.get(k), classify(k, new))
        for k in keys
        if old.get(k) != new.get(k)
    ]


def classify(key: str, config: Values) -> Effect:
    """The effect of another value of `key` on a training with the flat `config`.

    Breaks the shape: a resume refuses it, the saved state does not fit. Harmless: at every step
    that both reach, the weights are bitwise the same. A key that is not known may change them.
    """
    group, _, leaf = key.partition(".")
    if (group == "model" and leaf in SHAPE) or key == "optimizer.kind":
        return Effect.SHAPE
    if key in LENGTH:  # the schedule spans the run unless it has a length of its own or needs none
        fixed = config.get("schedule.kind") == "constant" or config.get("schedule.steps")
        return Effect.HARMLESS if fixed else Effect.TRAJECTORY
    return Effect.HARMLESS if key.startswith(WATCHING) else Effect.TRAJECTORY


def flatten(values: Values, prefix: str = "") -> Values:
    """Nested dicts as dotted keys."""
    flat: Values = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Values) -> Values:
    """The inverse of `flatten`."""
    nested: Values = {}
    for key, value in flat.items():
        *path, leaf = key.split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return nested


def _refuse_other_states(changes: list[Change]) -> None:
    for change in changes:
        if change.key == "optimizer.kind":
            raise ConfigError(
                f"a resume cannot change the optimizer ({change}), whose state is saved: leave it "
                "out, or start a new run from the weights with model.init_from=FILE"
            )
        group, _, leaf = change.key.partition(".")
        if group == "model" and leaf in SHAPE:
            raise ConfigError(
                f"a resume cannot change the shape of the model ({change}): "
                f"leave {change.key} out, or start a new run"
            )


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    return text if text.isprintable() else repr(value)  # no word to the terminal out of a file
