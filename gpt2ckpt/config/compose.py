"""Composing a config with Hydra, with its errors turned into one sentence each."""

import contextlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException, ValidationError

import gpt2ckpt
from gpt2ckpt.config.registry import (
    ROOTS,
    no_such_key,
    register_schemas,
    what_it_takes,
    without_interpolation,
)
from gpt2ckpt.errors import ConfigError, did_you_mean

PLUGINS = {  # how the configs of Hydra's plugins begin, and what brings them
    "hydra/launcher/joblib": "hydra-joblib-launcher",
    "hydra/sweeper/optuna": "hydra-optuna-sweeper 'sqlalchemy<2' 'alembic<1.17'",
}
NO_KEY = "not in '"  # OmegaConf: Key 'x' not in 'TrainerConfig'
IN_FILE = re.compile(  # what Hydra says of a file with a wrong key or value
    r"In '(.+)': (\w+) raised while composing config:\n(.+)\n\s+full_key: (.*)"
)


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


def compose_config(name: str, overrides: list[str], extra_dir: Path | None = None) -> Composed:
    """Compose `name` with `overrides` as Hydra does for one job.

    `extra_dir` is a config folder of the user's (--config-dir). Raises ConfigError.
    """
    register_schemas()
    refuse_non_choices(overrides)
    _refuse_two_lengths(overrides)
    if extra_dir is not None:
        overrides = [*overrides, f"hydra.searchpath=[{quoted(f'file://{extra_dir.resolve()}')}]"]
    GlobalHydra.instance().clear()
    with explained(name), initialize_config_dir(str(conf_directory()), version_base="1.3"):
        config = compose(name, overrides, return_hydra_config=True)
        hydra = config.hydra
        with open_dict(config):
            del config["hydra"]
        values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    for key, directory in (("run", hydra.run.dir), ("sweep", hydra.sweep.dir)):
        if not directory:
            raise ConfigError(f"hydra.{key}.dir is empty: give a directory, or leave it out")
    return Composed({str(key): value for key, value in values.items()}, hydra)


def sweep_jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of each job that Hydra's basic sweeper makes of a multirun's `overrides`."""
    batches = BasicSweeper.split_arguments(parse_overrides(overrides), max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def sets(word: str, *keys: str) -> bool:
    """Whether the override `word` gives one of `keys` a value."""
    return word.lstrip("+").startswith(tuple(f"{key}=" for key in keys))


def quoted(text: str) -> str:
    """`text` as a quoted string of Hydra's override grammar."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", without_interpolation(text))
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
    return shlex.quote(f"{key}={spelled(value)}")


@contextlib.contextmanager
def explained(root: str) -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise into ConfigErrors of one sentence."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(explain(error, root)) from error


def explain(error: BaseException, root: str = "train") -> str:
    """One sentence that says which override or key is wrong, and the nearest valid one."""
    if isinstance(error, MissingConfigException):
        return _explain_missing(error)
    text, root = str(error), root if root in ROOTS else "train"
    if match := IN_FILE.match(text):
        file, kind, reason, key = match.groups()
        return f"{file}.yaml: {_explain_value(key, reason, kind == 'ValidationError', root)}"
    inner = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    reason = str(inner).splitlines()[0] if inner else "it does not fit"
    key = override = str(getattr(inner, "full_key", None) or "")
    if match := re.search(r"Error merging override (.+)", text):
        override = match[1]
    elif match := re.search(r"Could not override '([^'@]+)", text):
        return no_such_key(max(key, match[1], key=len), root)
    if not key:
        return _explain_syntax(text)
    sentence = _explain_value(key, reason, isinstance(inner, ValidationError), root)
    return sentence if NO_KEY in reason else f"{override} is not possible: {sentence}"


def _explain_value(key: str, reason: str, is_type: bool, root: str) -> str:
    key = key.partition("[")[0]  # of a list, not of what is in it
    if NO_KEY in reason:
        return no_such_key(key, root)
    takes = what_it_takes(key, root) if is_type else ""
    return f"{key} must be {takes}" if takes else reason


def _explain_syntax(text: str) -> str:
    if taken := re.search(r"An item is already at '([^']+)'", text):
        return f"{taken[1]} has a value already: write {taken[1]}=VALUE without the plus"
    if ambiguous := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        key, value = ambiguous.groups()
        return (
            f"{key}={value} has commas: for a sweep over its parts add -m; a text with commas is "
            f"""quoted twice, as in "{key}='{value}'\", and a list is written [{value}]"""
        )
    lines = [line.strip() for line in text.splitlines() if line.strip() and "https:" not in line]
    if lines[0].startswith("Error parsing override"):
        word = lines[0].removeprefix("Error parsing override ")
        hint = (
            "" if "=" not in word else ": quote a value that has blanks, commas or = in it, twice"
        )
        hint += """, as in "key='a=b, c'\"""" if hint else ""
        return f"{word} is no override of the form key=value{hint}"
    return " ".join(lines)


def _explain_missing(error: MissingConfigException) -> str:
    missing = error.missing_cfg_file or "the config"
    options = [str(option) for option in error.options or []]
    for start, packages in PLUGINS.items():
        if missing.startswith(start):
            return f"{missing} comes with packages that are not installed: pip install {packages}"
    group, _, choice = missing.rpartition("/")
    if not options:
        return f"there is no config {missing}"
    hint = did_you_mean(choice, options, start=f"{group}=")
    return f"there is no {group}={choice}; the options are {', '.join(options)}.{hint}"


def parse_overrides(overrides: list[str]) -> Any:
    """Hydra's parsed overrides. Raises ConfigError for a word that is none."""
    parser, parsed = OverridesParser.create(), []
    for word in overrides:
        try:
            parsed.append(parser.parse_override(word))
            if not parsed[-1].key_or_group:
                raise ValueError("Hydra takes a word without a key")
        except (HydraException, ValueError) as error:
            raise ConfigError(f"{word!r} is no override of the form key=value") from error
    return parsed


def refuse_non_choices(overrides: list[str]) -> None:
    """Name the group where Hydra only says that something must be a string."""
    groups = {path.name for path in conf_directory().iterdir() if path.is_dir()}
    for override in parse_overrides(overrides):
        group, value = override.key_or_group, override.value()
        if group in groups and not override.is_delete() and isinstance(value, int | float | None):
            raise ConfigError(
                f"{override.input_line} names no choice: give {group}=NAME or leave it out"
            )


def _refuse_two_lengths(overrides: list[str]) -> None:
    """Two keys set the length of an evaluation, and neither may silently win."""
    keys = ("trainer.eval_blocks", "trainer.eval_steps")
    given = {o.key_or_group: o.value() for o in parse_overrides(overrides)}  # the last one counts
    if all(given.get(key) is not None for key in keys):
        raise ConfigError(f"{' and '.join(keys)} both set the length of an evaluation: give one")
