"""The classes that a config may build, by the name in `kind` and never by an import path."""

import contextlib
import dataclasses
import functools
import importlib
import re
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from gpt2ckpt.config import schema
from gpt2ckpt.config.aliases import TRAIN_WITH, key_for
from gpt2ckpt.config.earlier import with_earlier_values
from gpt2ckpt.config.options import (
    BUILT_IN,
    CALLBACK,
    DEFAULT_KINDS,
    GROUPS,
    OPTIONS,
    Option,
)
from gpt2ckpt.errors import ConfigError, nearest

importlib.import_module(BUILT_IN)  # by name, as a plugin: its builders import the upper layers

SINGLE = tuple(group for group in GROUPS if group != CALLBACK)  # groups with one option
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
EXAMPLES = {"gpt2": "gpt2_nano"}  # files of conf/ for kinds whose name is not that of a file
PLACEHOLDERS = {"ckpt": "PATH", "out": "DIR"}  # what a message writes as the value of a key
NO_KEY = "not in '"  # OmegaConf: Key 'x' not in 'TrainerConfig'


def register_schemas(folder: Path | None = None) -> None:
    """Register with Hydra the schema of each command, of each option, and the options of plugins.

    The schemas are in no group: --help would list the group. An option of a plugin is in its group,
    so that it needs no file; a file of its name in `folder`, the user's config folder, comes first.
    """
    store, options = ConfigStore.instance(), _options()
    own = {(o.group, o.name) for o in options if folder and _file_of(o, folder).is_file()}
    known = (tuple(options), frozenset(own))
    if "schema_train.yaml" in store.repo and _stored == [known]:
        return
    for name, root in ROOTS.items():
        _store(f"schema_{name}", _schema_of(root))
    for option in options:
        group, name = option.group, option.name
        _store(f"schema_{group}_{name}", option.schema())
        store.repo.get(group, {}).pop(f"{name}.yaml", None)
        if not option.is_built_in and (group, name) not in own:
            package = f"{group}.{name}" if group == CALLBACK else None
            store.store(name=name, node=option.schema(), group=group, package=package)
    _stored[:] = [known]


_stored: list[Any] = []  # the options and files that the schemas with Hydra belong to


def _file_of(option: Option, folder: Path) -> Path:
    return folder / option.group / f"{option.name}.yaml"


def _store(name: str, node: Any) -> None:
    store = ConfigStore.instance()
    store.repo.pop(f"{name}.yaml", None)  # Hydra 1.4 warns if the name is stored already
    store.store(name=name, node=node)


def _schema_of(root: type) -> DictConfig:
    """Return the schema of a command.

    As long as no plugin has options of them, the groups with a default kind have its keys, so that
    a config file of the user's may set a part of them and name no schema.
    """
    node: DictConfig = OmegaConf.structured(root)
    for group, kind in DEFAULT_KINDS.items():
        if group in node and len(OPTIONS[group]) == 1:
            node[group] = OPTIONS[group][kind].schema()
    return node


def option_of(group: str, config: Any) -> Option:
    """Return the option that a typed config belongs to.

    A config that was built from plain values has its name in `kind`.
    """
    options, kind = OPTIONS[group], getattr(config, "kind", None)
    if kind is not None:
        return options[kind]
    return next(option for option in options.values() if option.config is type(config))


def build(group: str, config: Any, *arguments: Any) -> Any:
    """Return the object that a typed config describes.

    Args:
        group: The config group.
        config: The typed config of an option of this group.
        arguments: What the builders of this group get after the config.

    Raises:
        PluginError: The builder of a plugin raised an exception.
    """
    option = option_of(group, config)
    with option.named_errors():
        return option.build(config, *arguments)


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
    groups = {group: values.pop(group) for group in SINGLE if values.get(group) is not None}
    callbacks = values.pop(CALLBACK, None) or {}
    built = _build(OmegaConf.structured(ROOTS[root]), values, "")
    for group, content in groups.items():
        if not hasattr(built, group):
            raise ConfigError(no_such_key(group, root))
        setattr(built, group, _build_option(group, content, f"{group}."))
    if callbacks:
        built.callback = {
            name: _build_option(CALLBACK, content, f"{CALLBACK}.{name}.")
            for name, content in callbacks.items()
        }
    return built


def build_model_config(values: dict[str, Any]) -> Any:
    """Return the model config from plain values. Raises ConfigError for a wrong key or type."""
    return _build_option("model", values, "model.")


def build_data_config(values: dict[str, Any]) -> Any:
    """Return a data config of the kind that the frozen `values` name. Raises ConfigError."""
    return _build_option("data", with_earlier_values("data", values), "data.")


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Return composed values with the schema's defaults for the keys that a group lacks.

    A config file of the user's may set `kind` without building on a schema.
    """
    completed = dict(values)
    for group in SINGLE:
        content = values.get(group)
        if isinstance(content, dict):
            kind = str(content.get("kind", DEFAULT_KINDS.get(group)))
            if option := OPTIONS[group].get(kind):
                defaults = OmegaConf.to_container(option.schema())
                assert isinstance(defaults, dict)
                completed[group] = {**defaults, **content}
    return completed


def _build_option(group: str, content: Any, prefix: str) -> Any:
    """Return the typed config of the option that plain values name in `kind`."""
    kind = content.get("kind", DEFAULT_KINDS.get(group)) if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in OPTIONS[group]:
        names = ", ".join(OPTIONS[group]) or "the options of a plugin"
        raise ConfigError(f"{prefix}kind is {kind!r}; it must be one of {names}")
    option = OPTIONS[group][kind]
    try:
        return _build(option.schema(), content, prefix)
    except ConfigError:
        raise
    except Exception as error:  # of the config class, which checks itself in __post_init__
        raise ConfigError(f"{option}: {error}") from error


def _build(node: DictConfig, values: dict[str, Any], prefix: str) -> Any:
    try:
        return OmegaConf.to_object(OmegaConf.merge(node, _literal(values)))
    except MissingMandatoryValue as error:
        missing = next(key for key in OmegaConf.missing_keys(OmegaConf.merge(node, values)))
        key, value = f"{prefix}{missing}", PLACEHOLDERS.get(missing, "VALUE")
        raise ConfigError(f"{key} is missing: pass {key}={value}") from error
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


def _types(root: str) -> dict[str, Any]:
    """Return every key of the command `root`, and each group, with its annotated type."""
    return _types_of(root, tuple(_options()))


@functools.cache
def _types_of(root: str, known: tuple[Option, ...]) -> dict[str, Any]:
    """Return the same; `known` identifies the registered options."""
    types: dict[str, Any] = {}
    for name, annotated in get_type_hints(ROOTS[root]).items():
        types[name] = annotated
        if dataclasses.is_dataclass(annotated):
            types |= {f"{name}.{leaf}": hint for leaf, hint in get_type_hints(annotated).items()}
        for option in OPTIONS.get(name, {}).values():
            prefix = f"{name}.{option.name}" if name == CALLBACK else name
            for leaf, hint in {"kind": str, **get_type_hints(option.config)}.items():
                types.setdefault(f"{prefix}.{leaf}", hint)
    return types


def _options() -> list[Option]:
    return [option for options in OPTIONS.values() for option in options.values()]


def no_such_key(key: str, root: str = "train", value: str = "") -> str:
    """Return the message for an unknown `key` of the command `root`, with the nearest key.

    `value` is the value that the user gave.
    """
    group, _, leaf = key.partition(".")
    options = OPTIONS.get(group, {}) if group != CALLBACK else {}
    offering = [
        f"{group}={EXAMPLES.get(kind, kind)}"
        for kind, option in options.items()
        if _has(option.config, leaf)
    ]
    if offering and hasattr(ROOTS[root], group):
        return f"{key} does not go with the chosen {group}: add {' or '.join(offering)}."
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
    group, dot, last = leaf.rpartition(".")
    near = nearest(last, leaves, cutoff=0.75)
    in_group = nearest(
        last, [key.removeprefix(f"{group}.") for key in keys if key.startswith(f"{group}.")]
    )
    candidates = [
        leaf if leaf in keys else "",
        key_for(leaf, root),
        leaves.get(leaf, ""),
        f"{group}.{in_group}" if in_group else "",
        nearest(leaf, keys, cutoff=0.8),
        leaves.get(near, ""),
        nearest(leaf, [key for key in keys if "." in key] if dot else keys),
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
