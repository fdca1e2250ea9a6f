"""The overrides that a checkpoint carries are words out of a file, so each is looked at first.

They are composed anew by a resume, and a composition can do more than set a value: a choice of a
group names a file to read, `${oc.env:…}` brings in the environment, and a part of the config is
Hydra's own and builds classes. What could do that is left out; what it meant stands in the frozen
config anyway.
"""

import re
from typing import Any

from gpt2ckpt.config.compose import conf_directory, parse_overrides

CHOICE = re.compile(r"[\w-]+(\.[\w-]+)*")  # a file of conf/, never a path to another folder
INTERPOLATION = "${"


def trusted(recorded: list[str], frozen: dict[str, Any]) -> list[str]:
    """The words of `recorded` that set values of the training's own keys, or choose from conf/.

    A name becomes part of a path: only that of the frozen config, which is checked, is kept.
    """
    groups = {path.name for path in conf_directory().iterdir() if path.is_dir()}
    return [
        override.input_line
        for override in parse_overrides(recorded)
        if _is_plain(override, groups, str(frozen.get("name")))
    ]


def _is_plain(override: Any, groups: set[str], name: str) -> bool:
    key, value = override.key_or_group, override.value()
    if INTERPOLATION in override.input_line or override.package is not None or "/" in key:
        return False
    if key.startswith("hydra"):
        return False
    if key in groups and not override.is_delete():
        return value is None or (isinstance(value, str) and CHOICE.fullmatch(value) is not None)
    return key != "name" or str(value) == name
