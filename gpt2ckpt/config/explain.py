"""What Hydra and OmegaConf raise, as one sentence that names the key and the nearest right one."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException, ValidationError
from yaml import YAMLError

from gpt2ckpt.config.registry import ROOTS, expected_value, no_such_key
from gpt2ckpt.errors import ConfigError, did_you_mean

PLUGINS = {  # the packages that bring Hydra's own plugins
    "hydra/launcher/joblib": "hydra-joblib-launcher",
    "hydra/launcher/ray": "hydra-ray-launcher",
    "hydra/launcher/rq": "hydra-rq-launcher",
    "hydra/launcher/submitit": "hydra-submitit-launcher",
    "hydra/sweeper/ax": "hydra-ax-sweeper",
    "hydra/sweeper/nevergrad": "hydra-nevergrad-sweeper",
    "hydra/sweeper/optuna": "hydra-optuna-sweeper==1.3.0 'sqlalchemy<2'",
}
CHOICES = {  # what others call a choice, where spelling alone would find another one
    "model/gpt2": "gpt2_small",  # Hugging Face's name of the model with 124M parameters
    "checkpoint/none": "off",
    "logger/off": "none",
    "logger/tb": "tensorboard",
    "hydra/launcher/slurm": "submitit_slurm",
}
NO_KEY = "not in '"  # OmegaConf: Key 'x' not in 'TrainerConfig'
IN_FILE = re.compile(  # what Hydra says of a file with a wrong key or value
    r"In '(.+)': (\w+) raised while composing config:\n(.+)\n\s+full_key: (.*)"
)


@contextlib.contextmanager
def explained(root: str, folder: Path | None = None) -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise into ConfigErrors of one sentence.

    `root` is the command whose keys are meant, `folder` the user's own config folder.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        raise ConfigError(explain(error, root, folder)) from error


def explain(error: BaseException, root: str = "train", folder: Path | None = None) -> str:
    """One sentence that says which override or key is wrong, and the nearest valid one."""
    if isinstance(error, MissingConfigException):
        return _explain_missing(error)
    text, root = str(error), root if root in ROOTS else "train"
    if match := IN_FILE.match(text):
        file, kind, reason, key = match.groups()
        sentence = _explain_value(key, reason, kind == "ValidationError", root)
        return f"{_path_of(file, folder)}: {sentence}"
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
    value = override.partition("=")[2]
    sentence = _explain_value(key, reason, isinstance(inner, ValidationError), root, value)
    return sentence if NO_KEY in reason else f"{override} is not possible: {sentence}"


def _path_of(file: str, folder: Path | None) -> str:
    own = folder / f"{file}.yaml" if folder else None
    return str(own) if own and own.is_file() else f"{file}.yaml"


def _explain_value(key: str, reason: str, is_type: bool, root: str, value: str = "") -> str:
    key = key.partition("[")[0]  # of a list, not of what is in it
    if NO_KEY in reason:
        return no_such_key(key, root, value)
    takes = expected_value(key, root) if is_type else ""
    if takes.startswith("a whole number") and re.fullmatch(r"[+-]?[\d.]+([eE]\+?\d+)?", value):
        with contextlib.suppress(ValueError):
            if float(value).is_integer():
                takes = f"{takes}; write {key}={int(float(value))}"
    return f"{key} must be {takes}" if takes else reason


def _explain_syntax(text: str) -> str:
    if taken := re.search(r"An item is already at '([^']+)'", text):
        return f"{taken[1]} has a value already: write {taken[1]}=VALUE without the plus"
    if twice := re.search(r"Multiple values for ([\w/]+)\.", text):
        return f"{twice[1]} is chosen more than once: give {twice[1]}=NAME once"
    if ambiguous := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        key, value = ambiguous.groups()
        return (
            f"{key}={value} has commas: for a sweep over its parts add -m; a text with commas is "
            f"""quoted twice, as in "{key}='{value}'\", and a list is written [{value}]"""
        )
    if continuous := re.search(r"BasicSweeper does not support sweep type : (\w+)", text):
        return (
            f"a sweep over an {continuous[1].partition('_')[0].lower()} has no end: give values, "
            "as in seed=1,2, choice(…) or range(…), or add hydra/sweeper=optuna"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip() and "https:" not in line]
    return " ".join(lines)


def _explain_missing(error: MissingConfigException) -> str:
    missing = error.missing_cfg_file or "the config"
    options = [str(option) for option in error.options or []]
    group, _, choice = missing.rpartition("/")
    meant = f"{group}/{CHOICES.get(missing, choice)}"
    packages = next((names for start, names in PLUGINS.items() if meant.startswith(start)), None)
    if packages:
        renamed = f", and write {group}={CHOICES[missing]}" if missing in CHOICES else ""
        return (
            f"{group}={choice} needs a package that is not installed: "
            f"pip install {packages}{renamed}"
        )
    if not options:
        return f"there is no config {missing}"
    if missing in CHOICES:
        hint = f" Did you mean {group}={CHOICES[missing]}?"
    else:
        hint = did_you_mean(choice, options, start=f"{group}=")
    if not hint and not group.startswith("hydra/"):
        hint = " Options of your own come from a folder, with --config-dir=DIR."
    return f"there is no {group}={choice}; the options are {', '.join(options)}.{hint}"
