"""Filters the overrides that a checkpoint records, since the file may be from an attacker.

A resume composes the recorded overrides again, and an override can do more than set a value: an
option names a file to read, `${oc.env:…}` reads the environment, and Hydra's own keys create
objects of any class. Such overrides are omitted. Their values are not lost, since the frozen config
has them.
"""

import re
from typing import Any

from gpt2ckpt.config.compose import config_groups, parse_overrides

OPTION = re.compile(r"[\w-]+(\.[\w-]+)*")  # a file of conf/, not a path to another folder
INTERPOLATION = "${"


def safe_overrides(recorded: list[str], frozen: dict[str, Any]) -> list[str]:
    """Return the overrides in `recorded` that only set a key or choose an option of conf/.

    The name of a run becomes part of a path. An override of the name is therefore kept only if it
    has the value in the frozen config, which is validated.
    """
    groups = config_groups()
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
