"""Compose a config with Hydra, and read and write overrides in its grammar."""

import contextlib
import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser import overrides_parser, overrides_visitor
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

import gpt2ckpt
from gpt2ckpt.config import user_files
from gpt2ckpt.config.explain import explained
from gpt2ckpt.config.options import CALLBACK, OPTIONS, PLUGINS
from gpt2ckpt.config.registry import (
    ROOTS,
    all_keys,
    expected_value,
    no_such_key,
    register_schemas,
    with_defaults,
    without_interpolation,
)
from gpt2ckpt.errors import ConfigError

if sys.flags.optimize:  # python -O drops Hydra's asserts, some of which consume tokens
    _visitor = overrides_visitor.__file__
    _code = compile(Path(_visitor).read_text(encoding="utf-8"), _visitor, "exec", optimize=0)
    exec(_code, overrides_visitor.__dict__)
    vars(overrides_parser).update(HydraOverrideVisitor=overrides_visitor.HydraOverrideVisitor)

# Hydra 1.3 behaves as 1.1 without the parameter version_base, which 1.4 deprecates.
VERSION_BASE: Any = "1.3" if hydra.__version__.startswith("1.3.") else version._UNSPECIFIED_

CONTROL = re.compile(r"[\x00-\x1f\x7f\udc80-\udcff]")  # the last: bytes that are not UTF-8
SPECIAL = re.compile(r"[\"$`!]|\\(?!')")  # has a meaning between a shell's double quotes


@dataclass(frozen=True)
class Composed:
    """A composed config: plain resolved values, and Hydra's own part."""

    values: dict[str, Any]
    hydra: DictConfig


def conf_directory() -> Path:
    """Return the repository's conf/, or the copy of it in the wheel."""
    package = Path(gpt2ckpt.__file__).resolve().parent
    carried = package / "conf"
    return carried if carried.is_dir() else package.parent / "conf"


def config_groups() -> set[str]:
    """Return the names of the groups: those of conf/, and that of callbacks."""
    return {path.name for path in conf_directory().iterdir() if path.is_dir()} | {CALLBACK}


def compose_config(
    name: str, overrides: list[str], extra_dir: Path | None = None, root: str | None = None
) -> Composed:
    """Return the config that Hydra composes for one job.

    Args:
        name: the primary config, of conf/ or of `extra_dir`.
        overrides: in Hydra's grammar.
        extra_dir: the user's config folder (--config-dir).
        root: the command whose keys the config must have; default: the command called `name`, else
            train.

    Raises:
        ConfigError: if an override or a config file is wrong; names the user's file if it is one.
    """
    root = root or (name if name in ROOTS else "train")
    register_schemas(extra_dir)
    refuse_non_options(overrides)
    _refuse_two_lengths(overrides)
    try:
        with explained(root, extra_dir):
            create_hydra(extra_dir)
            config = compose(name, overrides, return_hydra_config=True)
            hydra = config.hydra
            with open_dict(config):
                del config["hydra"]
            values = OmegaConf.to_container(config, resolve=True)
    except ConfigError as error:
        problem = None
        if extra_dir is not None:
            groups = config_loader(extra_dir).get_group_options("", ObjectType.GROUP)
            options = {name: group_options(name, extra_dir) for name in groups if name != "hydra"}
            problem = user_files.first_problem(extra_dir, name, chosen(overrides), options)
        raise (ConfigError(problem) if problem else error) from error
    finally:
        GlobalHydra.instance().clear()
    assert isinstance(values, dict)
    missing = [f.name for f in dataclasses.fields(ROOTS[root]) if f.name not in values]
    if missing:
        raise ConfigError(
            f"the config {name} does not have {missing[0]}: build it on the command's config, with "
            f"the line `defaults: [{root}, _self_]`"
        )
    for plugin in values.get("plugins", []):
        if plugin not in PLUGINS:
            raise ConfigError(
                f"the plugin {plugin} is named where plugins are not looked for: name it on the "
                f"command line, plugins=[{plugin}], or in your primary config"
            )
    for key, directory in (("run", hydra.run.dir), ("sweep", hydra.sweep.dir)):
        if not directory:
            raise ConfigError(f"hydra.{key}.dir is empty: give a directory, or leave it out")
    return Composed(with_defaults({str(key): value for key, value in values.items()}), hydra)


def _search_path(extra_dir: Path | None) -> ConfigSearchPath:
    """Return Hydra's search path: Hydra's own configs, conf/, then the user's folder."""
    path = create_config_search_path(str(conf_directory()))
    if extra_dir is not None:
        own, before = f"file://{extra_dir.absolute()}", SearchPathQuery(provider="schema")
        path.prepend(provider="command-line", path=own, anchor=before)
    return path


def create_hydra(extra_dir: Path | None) -> Hydra:
    """Return Hydra as `GlobalHydra` has it from now on; `extra_dir` is the user's config folder."""
    GlobalHydra.instance().clear()
    version.setbase(VERSION_BASE)
    return Hydra.create_main_hydra2(task_name="app", config_search_path=_search_path(extra_dir))


def config_loader(extra_dir: Path | None = None) -> ConfigLoader:
    """Return a loader that knows the groups and their options."""
    register_schemas(extra_dir)
    return ConfigLoaderImpl(config_search_path=_search_path(extra_dir))


def group_options(group: str, extra_dir: Path | None = None) -> list[str]:
    """Return the options of `group`; empty for a group that does not exist."""
    return list(config_loader(extra_dir).get_group_options(group))


def chosen(overrides: list[str]) -> list[tuple[str, str]]:
    """Return the groups in `overrides` with the option that is chosen of each."""
    pairs = []
    for override in parse_overrides(overrides):
        value = override.value()
        names = value if isinstance(value, list) else [value]
        pairs += [(override.key_or_group, name) for name in names if isinstance(name, str)]
    return pairs


def sweep_jobs(overrides: list[str], extra_dir: Path | None = None) -> list[list[str]]:
    """Return the overrides of each job of a multirun by Hydra's basic sweeper."""
    parsed = parse_overrides(overrides, extra_dir)
    with explained("train", extra_dir):
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def sets(override: str, *keys: str) -> bool:
    """Return whether `override` sets one of `keys`."""
    return override.lstrip("+").startswith(tuple(f"{key}=" for key in keys))


def quoted(text: str, *, interpolates: bool = False) -> str:
    """Return `text` as a quoted string of Hydra's override grammar.

    `interpolates`: whether OmegaConf resolves a `${…}` in it; otherwise it is escaped.
    """
    text = text if interpolates else without_interpolation(text)
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


def spelled(value: Any) -> str:
    """Return a string, number, boolean, None, list or dict in Hydra's override grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{spelled(item)}' for key, item in value.items())}}}"
    if not isinstance(value, str):
        return repr(value)
    is_plain = re.fullmatch(r"[\w./][\w./-]*", value, re.ASCII) is not None
    if is_plain and parse_overrides([f"x={value}"])[0].value() == value:  # 1e3 is a number
        return value
    return quoted(value)


def as_typed(key: str, value: Any) -> str:
    """Return the override that gives `key` this value, quoted for a shell."""
    return in_shell(f"{key}={spelled(value)}")


def in_shell(argument: str) -> str:
    """Return `argument` quoted for a shell, on one line whatever it contains."""
    if not CONTROL.search(argument):
        # Hydra's strings have single quotes: double quotes around them are easier to read.
        plain = "'" not in argument or SPECIAL.search(argument)
        return shlex.quote(argument) if plain else f'"{argument}"'
    escaped = re.sub(r"[\\']", r"\\\g<0>", argument)
    return f"$'{CONTROL.sub(lambda match: f'{chr(92)}x{ord(match[0]) & 255:02x}', escaped)}'"


def parse_override(argument: str) -> Override | None:
    """Return Hydra's parsed override; None if `argument` is not an override."""
    with contextlib.suppress(HydraException, ValueError):
        parsed = OverridesParser.create().parse_override(argument)
        return parsed if parsed.key_or_group else None  # Hydra accepts `=value`
    return None


def parse_overrides(overrides: Sequence[str], extra_dir: Path | None = None) -> list[Any]:
    """Return Hydra's parsed overrides. Raises ConfigError for an argument that is not an override.

    `extra_dir` is the user's config folder, in which a glob() finds options, too.
    """
    found = []
    for argument in overrides:
        parsed = parse_override(argument)
        if parsed is None:
            raise ConfigError(explain_argument(argument))
        if parsed.value_type is ValueType.GLOB_CHOICE_SWEEP:
            parsed.config_loader = config_loader(extra_dir)
        found.append(parsed)
    return found


def explain_argument(argument: str, root: str = "train") -> str:
    """Return why `argument` is not an override of the command `root`, and what to write."""
    key, equals, value = argument.lstrip("+").partition("=")
    if not equals or not re.fullmatch(r"[\w./@-]+", key):
        hint = ""
        if argument.endswith((".yaml", ".yml")):
            hint = ": choose a config of your own with --config-dir=DIR --config-name=NAME"
        elif os.path.exists(argument) or argument.endswith(".pt"):  # noqa: PTH110  (any length)
            hint = f": to resume from it, write {as_typed('+resume', argument)}"
        elif argument in ("latest", "best", "auto"):
            hint = f": write {'ckpt' if 'ckpt' in all_keys(root) else '+resume'}={argument}"
        elif argument == "resume" and root == "train":
            hint = ": write +resume=latest"
        elif re.match(r"[\w./@-]+\s+=", argument):
            hint = ": remove the space before ="
        return f"{argument!r} is not an override of the form key=value{hint}"
    if takes := expected_value(key, root) or expected_value(key):
        return f"{argument} cannot be read{_flaw(value)}: {key} must be {takes}"
    if not key.startswith("hydra") and key not in all_keys(root):
        return no_such_key(key, root)
    return (
        f"{argument!r} is not an override of the form key=value: if its value is a string, quote "
        f"it twice: {in_shell(f'{key}={quoted(value)}')}"
    )


def _flaw(value: str) -> str:
    """Return what is wrong with the commas and brackets of a value; empty if nothing is."""
    if any(value.count(start) != value.count(end) for start, end in ("[]", "()", "{}")):
        return " (a bracket is not closed or not opened)"
    return " (a comma has no value beside it)" if re.search(r"^,|,\s*(,|$)", value) else ""


def refuse_non_options(overrides: list[str]) -> None:
    """Raise ConfigError for a group that is given a value which is not the name of an option."""
    groups = config_groups()
    for override in parse_overrides(overrides):
        group, value = override.key_or_group, override.value()
        if group == CALLBACK and value and not OPTIONS[CALLBACK]:
            raise ConfigError(
                f"there is no {override.input_line}: no plugin that has callbacks is switched on. "
                "Switch on its module with plugins=[MODULE]."
            )
        if group in groups and not override.is_delete() and isinstance(value, int | float | None):
            none = f"{group}=[]" if group == CALLBACK else f"leave {group} out"
            raise ConfigError(
                f"{override.input_line} is not an option: give {group}=NAME or {none}; "
                f"the options are {', '.join(group_options(group))}"
            )


def _refuse_two_lengths(overrides: list[str]) -> None:
    """Raise ConfigError if both keys for the length of an evaluation are given."""
    keys = ("trainer.eval_blocks", "trainer.eval_steps")
    given = {o.key_or_group: o.value() for o in parse_overrides(overrides)}  # the last value wins
    if all(given.get(key) is not None for key in keys):
        raise ConfigError(f"{' and '.join(keys)} both set the length of an evaluation: give one")
