"""The classes that a config may build, by the name in `kind` and never by an import path."""

import contextlib
import dataclasses
import functools
import re
from types import NoneType
from typing import Any, get_args, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from gpt2ckpt.config import schema
from gpt2ckpt.config.aliases import TRAIN_WITH, key_for
from gpt2ckpt.config.earlier import with_earlier_values
from gpt2ckpt.errors import ConfigError, nearest

KINDS: dict[str, dict[str, type]] = {
    "data": {
        "embedded": schema.EmbeddedDataConfig,
        "text": schema.TextDataConfig,
        "tokens": schema.TokensDataConfig,
    },
    "optimizer": {"adamw": schema.AdamWConfig, "muon": schema.MuonConfig},
    "schedule": {
        "cosine": schema.CosineConfig,
        "wsd": schema.WsdConfig,
        "constant": schema.ConstantConfig,
    },
}
ROOTS: dict[str, type] = {
    "train": schema.TrainConfig,
    "sample": schema.SampleConfig,
    "evaluate": schema.EvaluateConfig,
    "prepare": schema.PrepareConfig,
    "drill": schema.DrillConfig,
}
TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    list[float]: "a list of two numbers, as in [0.9,0.95]",
    list[str]: "a list of strings, as in [a,b]",
}
NO_KEY = "not in '"  # OmegaConf: Key 'x' not in 'TrainerConfig'


def register_schemas() -> None:
    """Register the schema of each command and of each kind with Hydra.

    They are in no group: --help would list the group.
    """
    store = ConfigStore.instance()
    if "schema_train.yaml" in store.repo:
        return  # Hydra 1.4 warns if a name is registered twice
    for name, root in ROOTS.items():
        store.store(name=f"schema_{name}", node=root)
    for group, kinds in KINDS.items():
        for kind, node in kinds.items():
            store.store(name=f"schema_{group}_{kind}", node=node)


def build_typed(root: str, plain: dict[str, Any]) -> Any:
    """Return the typed config of the command `root` from plain values, e.g. a frozen config.

    A key that `plain` lacks has the value that it means in a frozen config without it: where
    `EARLIER_VALUES` lists the key the value there, else the schema's default.

    Raises:
        ConfigError: for an unknown kind, a wrong type or a missing value.
    """
    values = {
        key: with_earlier_values(key, value) if isinstance(value, dict) else value
        for key, value in plain.items()
    }
    groups = {group: values.pop(group) for group in KINDS if values.get(group) is not None}
    built = _build(ROOTS[root], values, "")
    for group, content in groups.items():
        setattr(built, group, _build(_kind(group, content), content, f"{group}."))
    return built


def build_model_config(values: dict[str, Any]) -> schema.ModelConfig:
    """Return the model config from plain values. Raises ConfigError for a wrong key or type."""
    built: schema.ModelConfig = _build(schema.ModelConfig, values, "model.")
    return built


def build_data_config(values: dict[str, Any]) -> Any:
    """Return a data config of the kind that the frozen `values` name. Raises ConfigError."""
    return _build(_kind("data", values), with_earlier_values("data", values), "data.")


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Return composed values with the schema's defaults for the keys that a group lacks.

    A config file of the user's may set `kind` without building on a schema.
    """
    completed = dict(values)
    for group, kinds in KINDS.items():
        content = values.get(group)
        if isinstance(content, dict) and (cls := kinds.get(str(content.get("kind")))):
            defaults = OmegaConf.to_container(OmegaConf.structured(cls))
            assert isinstance(defaults, dict)
            completed[group] = {**defaults, **content}
    return completed


def _kind(group: str, content: Any) -> type:
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in KINDS[group]:
        raise ConfigError(f"{group}.kind is {kind!r}; it must be one of {', '.join(KINDS[group])}")
    return KINDS[group][kind]


def _build(cls: type, values: dict[str, Any], prefix: str) -> Any:
    try:
        node = OmegaConf.structured(cls)
        return OmegaConf.to_object(OmegaConf.merge(node, _literal(values)))
    except MissingMandatoryValue as error:
        missing = next(key for key in OmegaConf.missing_keys(OmegaConf.merge(node, values)))
        raise ConfigError(f"{prefix}{missing} is missing: give {prefix}{missing}=VALUE") from error
    except OmegaConfBaseException as error:
        key, reason = f"{prefix}{error.full_key or ''}", str(error).splitlines()[0]
        message = explain_value(key, reason, is_type_error=isinstance(error, ValidationError))
        if NO_KEY not in reason:
            start = f"{key}: " if message == reason else f"{key} is {error.value!r}; "
            message = f"{start}{message}"
        raise ConfigError(message) from error


def _literal(value: Any) -> Any:
    """Escape interpolations: a frozen config is data, and nothing in it is evaluated."""
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(item) for item in value]
    if isinstance(value, str):
        return without_interpolation(value)
    return value


def without_interpolation(text: str) -> str:
    """Return `text` with `${` escaped, so that OmegaConf reads it as it is."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def all_keys(root: str) -> list[str]:
    """Return every key of the command `root`, dotted, of any kind, and the groups."""
    return sorted(_types(root))


@functools.cache
def _types(root: str) -> dict[str, Any]:
    """Return every key of the command `root`, and each group, with its annotated type."""
    types: dict[str, Any] = {}
    for name, annotated in get_type_hints(ROOTS[root]).items():
        types[name] = annotated
        for cls in KINDS[name].values() if name in KINDS else [annotated]:
            if dataclasses.is_dataclass(cls):
                for leaf, inner in get_type_hints(cls).items():
                    types.setdefault(f"{name}.{leaf}", inner)
    return types


def no_such_key(key: str, root: str = "train", value: str = "") -> str:
    """Return the message for an unknown `key` of the command `root`, with the nearest key.

    `value` is the value that the user gave.
    """
    group, _, leaf = key.partition(".")
    offering = [f"{group}={kind}" for kind, cls in KINDS.get(group, {}).items() if _has(cls, leaf)]
    if offering and hasattr(ROOTS[root], group):
        return f"{key} goes with {' or '.join(offering)}, not with the chosen {group}: add one."
    meant = key_meant(key, root)
    if value and key_for(_plain(key), root) and "=" not in meant:
        meant = f"{meant}={value}"
    hint = f" Did you mean {meant}?" if meant and meant != key else ""
    return f"there is no config key or group {key}.{hint}"


def key_meant(name: str, root: str, value: str = "") -> str:
    """Return the key of the command `root` that `name` means, as `key=value`; "" if none is near.

    `name` may be the last part of a key, the name of a key in another program, or misspelt. Leading
    dashes do not count.
    """
    keys, leaf = all_keys(root), _plain(name)
    if root in ("train", "drill") and leaf in TRAIN_WITH:
        return TRAIN_WITH[leaf]
    leaves = {key.rpartition(".")[2]: key for key in reversed(keys)}
    near = "" if "." in leaf else nearest(leaf, leaves, cutoff=0.75)
    candidates = [
        leaf if leaf in keys else "",
        key_for(leaf, root),
        leaves.get(leaf, ""),
        leaves.get(near, ""),
        nearest(leaf, keys),
    ]
    found = next(filter(None, candidates), "")
    return f"{found}={value}" if found and value else found


def _plain(name: str) -> str:
    return name.lstrip("-").lower().replace("-", "_")


def expected_value(key: str, root: str = "train") -> str:
    """Return the type of `key` as text: "a number, or null"; empty for an unknown key."""
    hint = _types(root).get(key)
    names = [TYPE_NAMES[part] for part in (hint, *get_args(hint)) if part in TYPE_NAMES]
    or_null = ", or null" if NoneType in get_args(hint) else ""
    return f"{names[0]}{or_null}" if names else ""


def explain_value(
    key: str, reason: str, *, is_type_error: bool, root: str = "train", value: str = ""
) -> str:
    """Return what is wrong with a key or its value.

    Args:
        key: the full key, of an item of a list with its index.
        reason: OmegaConf's message, which is returned if there is no better one.
        is_type_error: whether OmegaConf refused the type of the value.
        root: the command.
        value: the value as it was typed, if it was.
    """
    key = key.partition("[")[0]
    if NO_KEY in reason:
        return no_such_key(key, root, value)
    takes = expected_value(key, root) if is_type_error else ""
    if takes.startswith("a whole number") and re.fullmatch(r"[+-]?[\d.]+([eE]\+?\d+)?", value):
        with contextlib.suppress(ValueError):
            if float(value).is_integer():
                takes = f"{takes}; write {key}={int(float(value))}"
    return f"{key} must be {takes}" if takes else reason


def takes_string(key: str, root: str = "train") -> bool:
    """Return whether a value of `key`, or each item of its list, is a string."""
    hint = _types(root).get(key)
    return str in (hint, *get_args(hint))


def _has(cls: type, leaf: str) -> bool:
    return any(field.name == leaf for field in dataclasses.fields(cls))
