"""Replay the frozen config of a checkpoint with the overrides of a command line on top.

Hydra's overrides are instructions to compose a config, and a frozen config is already composed. So
two configs are composed from today's conf/: one from the recorded overrides of the run, one from
these and the new overrides. A key in which the two differ is changed, and so is a key that a new
override names. All other keys keep their frozen values, even if conf/ has changed. A recorded
override that no longer composes, such as an experiment that was renamed, is left out of both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt2ckpt.config.compose import parse_overrides, sets
from gpt2ckpt.config.earlier import in_blocks
from gpt2ckpt.config.options import CALLBACK, DEFAULT_KINDS, OPTIONS, Effect, Option, effect_of
from gpt2ckpt.config.recorded import safe_overrides
from gpt2ckpt.config.registry import SINGLE
from gpt2ckpt.errors import ConfigError

Values = dict[str, Any]
NOT_FROZEN = ("resume", "fork", "dry_run", "plugins")
WATCHING = (  # keys, or their prefixes, that no weight depends on
    "name",
    "checkpoint.",
    "trainer.eval_",
    "trainer.log_every",
    "trainer.sample_",
)
CALLBACKS = f"{CALLBACK}."  # their keys come and go with the choice of the group
LENGTH = ("trainer.max_steps", "trainer.max_epochs")
EVALUATION_LENGTH = ("trainer.eval_blocks", "trainer.eval_steps")  # two units of one setting


@dataclass(frozen=True)
class Change:
    """A key that a resume changes, and the effect on the training."""

    key: str
    old: Any
    new: Any
    effect: Effect = Effect.TRAJECTORY

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} → {_shown(self.new)}"


def freeze(values: Values) -> Values:
    """Return the part of a composed config that a checkpoint keeps.

    A default kind is left out, and so is the group of callbacks if it is empty: without plugins, a
    frozen config is that of earlier versions.
    """
    frozen = {key: value for key, value in in_blocks(values).items() if key not in NOT_FROZEN}
    for group, kind in DEFAULT_KINDS.items():
        content = frozen.get(group)
        if isinstance(content, dict) and content.get("kind") == kind:
            frozen[group] = {key: value for key, value in content.items() if key != "kind"}
    if not frozen.get(CALLBACK):
        frozen.pop(CALLBACK, None)
    return frozen


def task_overrides(overrides: list[str]) -> list[str]:
    """Return the overrides of the training: without Hydra's own, resume, fork and dry_run."""
    return [
        override.input_line
        for override in parse_overrides(overrides)
        if not override.key_or_group.startswith("hydra") and override.key_or_group not in NOT_FROZEN
    ]


def replay(
    frozen: Values, recorded: list[str], new: list[str], compose: Callable[[list[str]], Values]
) -> tuple[Values, list[Change]]:
    """Return the config to resume with, and what `new` changes in the frozen config.

    Args:
        frozen: the frozen config.
        recorded: the overrides of the run so far.
        new: the overrides of this command.
        compose: composes a config from overrides.

    Raises:
        ConfigError: for a change that the saved state does not fit.
    """
    if not new:
        return frozen, []
    base, lost = _composable_base(frozen, recorded, compose)
    new = [override for override in new if override not in lost]  # repeated: its values are frozen
    if not new:
        return frozen, []
    before = flatten(freeze(compose(base)))
    after = flatten(freeze(compose([*base, *new])))
    asked = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    for override in parse_overrides(new):
        named = override.key_or_group
        # A group that is given again, as in the command of the first start, changes nothing.
        if "." in named or named in after:
            asked |= {key for key in after if key == named or key.startswith(f"{named}.")}
        if named in SINGLE:
            asked.add(f"{named}.kind")
    current = flatten(frozen)
    result = dict(current)
    for group in SINGLE:
        kind = f"{group}.kind"
        if kind in asked and current.get(kind) != after.get(kind):
            result = {k: v for k, v in result.items() if not k.startswith(f"{group}.")}
            asked |= {key for key in after if key.startswith(f"{group}.")}
    result = {k: v for k, v in result.items() if not (k in asked and k.startswith(CALLBACKS))}
    result |= {key: value for key, value in after.items() if key in asked}
    changes = difference(current, result)
    _refuse_other_states(changes)
    return unflatten(result), changes


def composable(overrides: list[str], compose: Callable[[list[str]], Values]) -> list[str]:
    """Return those of `overrides` that still compose, each on top of the ones before it."""
    return _composable_after([], overrides, compose) if overrides else []


def _composable_after(
    kept: list[str], rest: list[str], compose: Callable[[list[str]], Values]
) -> list[str]:
    """Return `kept`, which composes, and those of `rest` that compose on top of it."""
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
    """Return overrides that compose the kinds of the frozen config, and the lost of `recorded`.

    New overrides are of keys of these kinds, even if the file that chose the kinds is gone.
    """
    base = composable(recorded, compose)
    lost = [override for override in recorded if override not in base]
    if lost:
        now, then = flatten(compose(base)), flatten(frozen)
        kinds = [
            f"{group}={kind}"
            for group in SINGLE
            if (kind := then.get(f"{group}.kind")) in OPTIONS[group]
            and kind != now.get(f"{group}.kind")
        ]
        base = _composable_after(base, kinds, compose)
    return base, lost


def still_meant(
    frozen: Values, recorded: list[str], new: list[str], compose: Callable[[list[str]], Values]
) -> list[str]:
    """Return the recorded overrides that still count beside the new ones.

    Those of a group that `new` replaces by another kind do not count, nor do those that are unsafe:
    the list comes from a file.
    """
    recorded = safe_overrides(task_overrides(recorded), frozen)
    for key, other in (EVALUATION_LENGTH, EVALUATION_LENGTH[::-1]):
        if any(sets(override, key) for override in new):
            recorded = [override for override in recorded if not sets(override, other)]
    groups = [o for o in parse_overrides(new) if o.key_or_group in OPTIONS]
    valid = composable([group.input_line for group in groups], compose)
    groups = [group for group in groups if group.input_line in valid]  # `replay` refuses the others
    if not groups:
        return recorded
    before, after = flatten(frozen), flatten(compose(valid))
    replaced = [group.key_or_group for group in groups if group.key_or_group != CALLBACK]
    if len(replaced) < len(groups):
        replaced += [f"{CALLBACK}.{name}" for name in frozen.get(CALLBACK) or {}]
    kinds = [f"{group}.kind" for group in replaced]
    gone = tuple(kind.removesuffix("kind") for kind in kinds if before.get(kind) != after.get(kind))
    return [o.input_line for o in parse_overrides(recorded) if not o.key_or_group.startswith(gone)]


def difference(old: Values, new: Values) -> list[Change]:
    """Return the keys in which two flat configs differ, in the order of the configs."""
    keys = [*old, *(key for key in new if key not in old)]
    defaults = {f"{group}.kind": kind for group, kind in DEFAULT_KINDS.items()}
    old, new = defaults | old, defaults | new
    return [
        Change(k, old.get(k), new.get(k), classify(k, new if k in new else old))
        for k in keys
        if old.get(k) != new.get(k)
    ]


def classify(key: str, config: Values) -> Effect:
    """Return the effect of another value of `key` on a training with the flat `config`.

    SHAPE: the saved state does not fit, so that a resume refuses the change. HARMLESS: at each step
    that both trainings reach, the weights are bitwise the same. TRAJECTORY: all other keys, unknown
    ones too.
    """
    if key in ("model.kind", "optimizer.kind"):
        return Effect.SHAPE
    if option := _option_with(key, config):
        return effect_of(option, key.rpartition(".")[2])
    if key in LENGTH:  # the length of most schedules is that of the run
        fixed = config.get("schedule.kind") == "constant" or config.get("schedule.steps")
        return Effect.HARMLESS if fixed else Effect.TRAJECTORY
    return Effect.HARMLESS if key.startswith(WATCHING) else Effect.TRAJECTORY


def _option_with(key: str, config: Values) -> Option | None:
    """Return the option that `key` belongs to; None for a key of no option that is known."""
    group, _, rest = key.partition(".")
    if group not in OPTIONS or not rest:
        return None
    prefix = f"{group}.{rest.partition('.')[0]}" if group == CALLBACK else group
    kind = config.get(f"{prefix}.kind", DEFAULT_KINDS.get(group))
    return OPTIONS[group].get(str(kind))


def flatten(values: Values, prefix: str = "") -> Values:
    """Return nested dicts as one dict with dotted keys."""
    flat: Values = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Values) -> Values:
    """Return dotted keys as nested dicts."""
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
        if change.effect is Effect.SHAPE:
            raise ConfigError(
                f"a resume cannot change the shape of the model ({change}): "
                f"leave {change.key} out, or start a new run"
            )


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    return text if text.isprintable() else repr(value)  # no control characters from a file
