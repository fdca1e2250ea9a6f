"""Filter the overrides that a checkpoint records: they come from a file that may be hostile.

A resume composes them again, and an override can do more than set a value: an option names a file
to read, `${oc.env:…}` reads the environment, and Hydra's own keys build classes. Such overrides are
left out. Nothing is lost: the frozen config has their values.
"""

import re
from typing import Any

from gpt2ckpt.config.compose import conf_directory, parse_overrides

OPTION = re.compile(r"[\w-]+(\.[\w-]+)*")  # a file of conf/, not a path to another folder
INTERPOLATION = "${"


def safe_overrides(recorded: list[str], frozen: dict[str, Any]) -> list[str]:
    """Return those of `recorded` that set keys of the training or choose an option of conf/.

    A run's name becomes part of a path: only the frozen config's, which is validated, is kept.
    """
    groups = {path.name for path in conf_directory().iterdir() if path.is_dir()}
    return [
        override.input_line
        for override in parse_overrides(recorded)
        if _is_safe(override, groups, str(frozen.get("name")))
    ]


def _is_safe(override: Any, groups: set[str], name: str) -> bool:
    key, value = override.key_or_group, override.value()
    if INTERPOLATION in override.input_line or override.package is not None or "/" in key:
        return False
    if key.startswith("hydra"):
        return False
    if key in groups and not override.is_delete():
        return value is None or (isinstance(value, str) and OPTION.fullmatch(value) is not None)
    return key != "name" or str(value) == name
