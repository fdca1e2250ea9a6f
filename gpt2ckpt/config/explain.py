"""Explains errors of Hydra and OmegaConf in one message, with the nearest valid key or option."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException, ValidationError
from yaml import YAMLError

from gpt2ckpt.config.registry import NO_KEY, ROOTS, explain_value, no_such_key
from gpt2ckpt.errors import ConfigError, did_you_mean

PLUGINS = {  # the packages of Hydra's own plugins
    "hydra/launcher/joblib": "hydra-joblib-launcher",
    "hydra/launcher/ray": "hydra-ray-launcher",
    "hydra/launcher/rq": "hydra-rq-launcher",
    "hydra/launcher/submitit": "hydra-submitit-launcher",
    "hydra/sweeper/ax": "hydra-ax-sweeper",
    "hydra/sweeper/nevergrad": "hydra-nevergrad-sweeper",
    "hydra/sweeper/optuna": "hydra-optuna-sweeper==1.3.0 'sqlalchemy<2'",
}
OPTIONS = {  # names of options in other programs that are spelled like a different option
    "model/gpt2": "gpt2_small",  # Hugging Face's name of the model with 124M parameters
    "checkpoint/none": "off",
    "logger/off": "none",
    "logger/tb": "tensorboard",
    "hydra/launcher/slurm": "submitit_slurm",
}
IN_FILE = re.compile(  # Hydra's message for a file with a wrong key or value
    r"In '(.+)': (\w+) raised while composing config:\n(.+)\n\s+full_key: (.*)"
)


@contextlib.contextmanager
def explained(root: str, folder: Path | None = None) -> Iterator[None]:
    """Raise ConfigError with one message for any error of Hydra and OmegaConf in this context.

    `root` is the command, and `folder` is the user's config folder.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        raise ConfigError(explain(error, root, folder)) from error


def explain(error: BaseException, root: str = "train", folder: Path | None = None) -> str:
    """Return which override or key is wrong, and the nearest valid one."""
    if isinstance(error, MissingConfigException):
        return _explain_missing(error)
    text, root = str(error), root if root in ROOTS else "train"
    if match := IN_FILE.match(text):
        file, kind, reason, key = match.groups()
        is_type_error = kind == "ValidationError"
        message = explain_value(key, reason, is_type_error=is_type_error, root=root)
        return f"{_path_of(file, folder)}: {message}"
    inner = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    reason = str(inner).splitlines()[0] if inner else "it does not fit"
    key = override = str(getattr(inner, "full_key", None) or "")
    if match := re.search(r"Error merging override (.+)", text):
        override = match[1]
    elif match := re.search(r"Could not override '([^'@]+)", text):
        key = max(key, match[1], key=len)
        given = re.search(rf"\+{re.escape(key)}=(.*)", text)
        return no_such_key(key, root, given[1] if given else "")
    if not key:
        return _explain_syntax(text)
    if "does not support deletion" in reason:
        return f"{override} is not possible: a key can be changed, not removed. Write KEY=VALUE"
    message = explain_value(
        key,
        reason,
        is_type_error=isinstance(inner, ValidationError),
        root=root,
        value=override.partition("=")[2],
    )
    return message if NO_KEY in reason else f"{override} is not possible: {message}"


def _path_of(file: str, folder: Path | None) -> str:
    own = folder / f"{file}.yaml" if folder else None
    return str(own) if own and own.is_file() else f"{file}.yaml"


def _explain_syntax(text: str) -> str:
    if taken := re.search(r"An item is already at '([^']+)'", text):
        return f"{taken[1]} already has a value: write {taken[1]}=VALUE without the plus"
    if twice := re.search(r"Multiple values for ([\w/]+)\.", text):
        return f"{twice[1]} is chosen more than once: write {twice[1]}=NAME once"
    if ambiguous := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        key, value = ambiguous.groups()
        return (
            f"{key}={value} has commas: add -m for a sweep over its parts, quote a string with "
            f"""commas twice, as in "{key}='{value}'\", and write a list as [{value}]"""
        )
    if continuous := re.search(r"BasicSweeper does not support sweep type : (\w+)", text):
        return (
            f"a sweep over an {continuous[1].partition('_')[0].lower()} never ends: write values, "
            "such as seed=1,2, choice(…) or range(…), or add hydra/sweeper=optuna"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip() and "https:" not in line]
    return " ".join(lines)


def _explain_missing(error: MissingConfigException) -> str:
    missing = error.missing_cfg_file or "the config"
    options = [str(option) for option in error.options or []]
    group, _, name = missing.rpartition("/")
    meant = f"{group}/{OPTIONS.get(missing, name)}"
    packages = next((names for start, names in PLUGINS.items() if meant.startswith(start)), None)
    if packages:
        renamed = f", and write {group}={OPTIONS[missing]}" if missing in OPTIONS else ""
        return (
            f"{group}={name} needs a package that is not installed: pip install {packages}{renamed}"
        )
    if not options:
        return f"there is no config {missing}"
    message = no_such_option(group, name, options)
    if message.endswith(".") and not group.startswith("hydra/"):
        message += (
            " To add options of your own, switch on their module with plugins=[MODULE], or pass "
            "their folder as --config-dir=DIR."
        )
    return message


def no_such_option(group: str, name: str, options: list[str], where: str = "") -> str:
    """Return the message for an unknown option; `where` describes the file that names it."""
    typed = OPTIONS.get(f"{group}/{name}", name)
    hint = did_you_mean(typed, options, start=f"{group}=")
    return f"there is no {group}={name}{where}; the options are {', '.join(options)}.{hint}"
