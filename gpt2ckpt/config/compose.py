"""Composing a config with Hydra, and the grammar of its overrides."""

import dataclasses
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
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

import gpt2ckpt
from gpt2ckpt.config import user_files
from gpt2ckpt.config.explain import explained
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

if sys.flags.optimize:  # python -O drops Hydra's asserts, and some of them consume what they check
    _visitor = overrides_visitor.__file__
    _code = compile(Path(_visitor).read_text(encoding="utf-8"), _visitor, "exec", optimize=0)
    exec(_code, overrides_visitor.__dict__)
    vars(overrides_parser).update(HydraOverrideVisitor=overrides_visitor.HydraOverrideVisitor)

# Hydra 1.3 would behave as 1.1 without the parameter version_base, which 1.4 deprecates.
VERSION_BASE: Any = "1.3" if hydra.__version__.startswith("1.3.") else version._UNSPECIFIED_

CONTROL = re.compile(r"[\x00-\x1f\x7f\udc80-\udcff]")  # the last: bytes that are not UTF-8
SPECIAL = re.compile(r"[\"$`!]|\\(?!')")  # has a meaning between a shell's double quotes


@dataclass(frozen=True)
class Composed:
    """A composed config as plain resolved values, Hydra's own part of it beside."""

    values: dict[str, Any]
    hydra: DictConfig


def conf_directory() -> Path:
    """The repository's conf/, or the copy that the wheel carries."""
    package = Path(gpt2ckpt.__file__).resolve().parent
    carried = package / "conf"
    return carried if carried.is_dir() else package.parent / "conf"


def compose_config(
    name: str, overrides: list[str], extra_dir: Path | None = None, root: str | None = None
) -> Composed:
    """Compose `name` with `overrides` as Hydra does for one job.

    Args:
        name: the primary config: one of conf/, or a file of the user's in `extra_dir`.
        overrides: in Hydra's grammar.
        extra_dir: a config folder of the user's (--config-dir).
        root: the command whose keys the config must have; `name` where that is a command's.

    Raises:
        ConfigError: with the file of the user's that is wrong, if it is one.
    """
    root = root or (name if name in ROOTS else "train")
    register_schemas()
    refuse_non_choices(overrides)
    _refuse_two_lengths(overrides)
    try:
        with explained(root, extra_dir):
            _initialize_hydra(extra_dir)
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
            f"the config {name} does not have {missing[0]}: let it build on that of the command, "
            f"with the line `defaults: [{root}, _self_]`"
        )
    for key, directory in (("run", hydra.run.dir), ("sweep", hydra.sweep.dir)):
        if not directory:
            raise ConfigError(f"hydra.{key}.dir is empty: give a directory, or leave it out")
    return Composed(with_defaults({str(key): value for key, value in values.items()}), hydra)


def _search_path(extra_dir: Path | None) -> ConfigSearchPath:
    """Where configs are looked for: Hydra's, those of conf/, then the user's, as Hydra does."""
    path = create_config_search_path(str(conf_directory()))
    if extra_dir is not None:
        own, before = f"file://{extra_dir.absolute()}", SearchPathQuery(provider="schema")
        path.prepend(provider="command-line", path=own, anchor=before)
    return path


def _initialize_hydra(extra_dir: Path | None) -> None:
    GlobalHydra.instance().clear()
    version.setbase(VERSION_BASE)
    Hydra.create_main_hydra2(task_name="app", config_search_path=_search_path(extra_dir))


def config_loader(extra_dir: Path | None = None) -> ConfigLoader:
    """What knows the groups and their options; glob() in a sweep asks it."""
    register_schemas()
    return ConfigLoaderImpl(config_search_path=_search_path(extra_dir))


def group_options(group: str, extra_dir: Path | None = None) -> list[str]:
    """The names that `group` can be given; empty for a group that does not exist."""
    return list(config_loader(extra_dir).get_group_options(group))


def chosen(overrides: list[str]) -> list[tuple[str, str]]:
    """The options of groups that `overrides` choose, as pairs of group and name."""
    pairs = []
    for override in parse_overrides(overrides):
        value = override.value()
        names = value if isinstance(value, list) else [value]
        pairs += [(override.key_or_group, name) for name in names if isinstance(name, str)]
    return pairs


def sweep_jobs(overrides: list[str], extra_dir: Path | None = None) -> list[list[str]]:
    """The overrides of each job that Hydra's basic sweeper makes of a multirun's `overrides`."""
    parsed = parse_overrides(overrides, extra_dir)
    with explained("train", extra_dir):
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def sets(word: str, *keys: str) -> bool:
    """Whether the override `word` gives one of `keys` a value."""
    return word.lstrip("+").startswith(tuple(f"{key}=" for key in keys))


def quoted(text: str, *, interpolates: bool = False) -> str:
    """`text` as a quoted string of Hydra's override grammar.

    With `interpolates` a `${…}` in it stays what it is to OmegaConf; else it is text like the rest.
    """
    text = text if interpolates else without_interpolation(text)
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


def spelled(value: Any) -> str:
    """A string, number, boolean, None, or list or dict of them, in Hydra's override grammar."""
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
    """The override that gives `key` this value, to be typed in a shell."""
    return in_shell(f"{key}={spelled(value)}")


def in_shell(word: str) -> str:
    """`word` quoted for a shell, on one line whatever is in it."""
    if not CONTROL.search(word):
        # What Hydra reads has single quotes in it: double ones around it are easier to read.
        plain = "'" not in word or SPECIAL.search(word)
        return shlex.quote(word) if plain else f'"{word}"'
    escaped = re.sub(r"[\\']", r"\\\g<0>", word)
    return f"$'{CONTROL.sub(lambda match: f'{chr(92)}x{ord(match[0]) & 255:02x}', escaped)}'"


def parse_overrides(overrides: Sequence[str], extra_dir: Path | None = None) -> Any:
    """Hydra's parsed overrides. Raises ConfigError for a word that is none.

    `extra_dir` is where a glob() in them looks for options, beside conf/.
    """
    parser, parsed = OverridesParser.create(), []
    for word in overrides:
        try:
            parsed.append(parser.parse_override(word))
            if not parsed[-1].key_or_group:
                raise ValueError("Hydra takes a word without a key")
        except (HydraException, ValueError) as error:
            raise ConfigError(explain_argument(word)) from error
        if parsed[-1].value_type is ValueType.GLOB_CHOICE_SWEEP:
            parsed[-1].config_loader = config_loader(extra_dir)
    return parsed


def explain_argument(word: str, root: str = "train") -> str:
    """Return why `word` is not an override of the command `root`, and what to write."""
    key, equals, value = word.lstrip("+").partition("=")
    if not equals or not re.fullmatch(r"[\w./@-]+", key):
        hint = ""
        if word.endswith((".yaml", ".yml")):
            hint = ": a config of your own is chosen with --config-dir=DIR --config-name=NAME"
        elif Path(word).exists() or word.endswith(".pt"):
            hint = f": to resume from it, write {as_typed('+resume', word)}"
        return f"{word!r} is not an override of the form key=value{hint}"
    if takes := expected_value(key, root) or expected_value(key):
        return f"{word} cannot be read: {key} must be {takes}"
    if not key.startswith("hydra") and key not in all_keys(root):
        return no_such_key(key, root)
    return (
        f"{word!r} is not an override of the form key=value: if its value is a text, quote it "
        f"twice: {in_shell(f'{key}={quoted(value)}')}"
    )


def refuse_non_choices(overrides: list[str]) -> None:
    """Name the group where Hydra only says that something must be a string."""
    groups = {path.name for path in conf_directory().iterdir() if path.is_dir()}
    for override in parse_overrides(overrides):
        group, value = override.key_or_group, override.value()
        if group in groups and not override.is_delete() and isinstance(value, int | float | None):
            raise ConfigError(
                f"{override.input_line} names no choice: give {group}=NAME or leave it out; the "
                f"options are {', '.join(group_options(group))}"
            )


def _refuse_two_lengths(overrides: list[str]) -> None:
    """Two keys set the length of an evaluation, and neither may silently win."""
    keys = ("trainer.eval_blocks", "trainer.eval_steps")
    given = {o.key_or_group: o.value() for o in parse_overrides(overrides)}  # the last one counts
    if all(given.get(key) is not None for key in keys):
        raise ConfigError(f"{' and '.join(keys)} both set the length of an evaluation: give one")
