"""Import the plugins that the user switched on: modules that register options.

Only the command line, the user's own config files and installed packages name plugins. A
checkpoint, a frozen config or another file of a run never causes an import.
"""

import functools
import importlib
import importlib.metadata
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from gpt2ckpt.config.compose import parse_override
from gpt2ckpt.config.options import PLUGINS, Plugin, forget
from gpt2ckpt.config.user_files import GLOBAL_GROUPS
from gpt2ckpt.errors import ConfigError, UserError
from gpt2ckpt.files.source_digest import source_digest

KEY = "plugins"
ENTRY_POINTS = "gpt2ckpt.plugins"
MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def switched_on(arguments: Iterable[str], folder: Path | None, config_name: str) -> list[str]:
    """Return the names of the plugins that the user switched on, without importing them.

    These are the plugins of installed packages, and those of the command line or, if it names
    none, of the user's config files.

    Args:
        arguments: The overrides of the command line.
        folder: The user's config folder.
        config_name: The primary config.
    """
    arguments = list(arguments)
    named = _in_arguments(arguments)
    if named is None:
        named = list(_in_files(folder, config_name, arguments)) if folder else []
    return list(dict.fromkeys([*_installed(), *named]))


def load(names: Iterable[str]) -> None:
    """Import plugins, each once.

    Raises:
        ConfigError: A plugin does not exist or cannot be imported, or it registers an option that
            another module has registered.
    """
    for name in names:
        if name not in PLUGINS:
            _import(name)
            PLUGINS[name] = Plugin(name, _version(name), _source(name), name in _installed())


def _import(name: str) -> None:
    if MODULE.fullmatch(name) is None or name.endswith(".py"):
        module = Path(name).name.removesuffix(".py")
        raise ConfigError(
            f"plugins: {name!r} is not the name of a module: write the name as in an import "
            f"statement, e.g. plugins=[{module}] for {module}.py in the current directory"
        )
    try:
        importlib.import_module(name)
    except BaseException as error:
        forget(name)
        if isinstance(error, UserError) or not isinstance(error, Exception | SystemExit):
            raise
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{name}.".startswith(f"{missing}."):
            raise ConfigError(_failed_import(name, error)) from error
        raise ConfigError(
            f"there is no module {name} for plugins=[{name}]: Python searches the current "
            "directory (under `python -m`), the folders in PYTHONPATH, and installed packages"
        ) from error


def _failed_import(name: str, error: BaseException) -> str:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and frame.filename != __file__
    ]
    inner = [frame for frame in frames if Path(frame.filename).parent.name != "importlib"]
    where = f", in {os.path.relpath(inner[-1].filename)}:{inner[-1].lineno}" if inner else ""
    reason = (str(error).splitlines() or [""])[0]
    return (
        f"the plugin {name} cannot be imported{where}: {type(error).__name__}: {reason} "
        "(HYDRA_FULL_ERROR=1 shows where)"
    )


def _in_arguments(arguments: Iterable[str]) -> list[str] | None:
    """Return the plugins that overrides name; None if none names any. The last one counts."""
    found = None
    for argument in arguments:
        parsed = parse_override(argument) if argument.lstrip("+").startswith(f"{KEY}=") else None
        if parsed is not None and not parsed.is_sweep_override():
            found = _names(parsed.value())
    return found


def _in_files(folder: Path, config_name: str, arguments: list[str]) -> Iterator[str]:
    """Yield the plugins in the user's primary config and the options that it or they choose.

    Errors in a file are reported when the config is composed.
    """
    pending, seen = [config_name], set()
    for argument in arguments:
        if (parsed := parse_override(argument)) is not None:
            pending += _paths(parsed.key_or_group, parsed.value(), "")
    while pending:
        path = pending.pop(0)
        file, group = folder / f"{path}.yaml", path.rpartition("/")[0]
        if path in seen or not file.is_file():
            continue
        seen.add(path)
        values = _read(file)
        if not group or group in GLOBAL_GROUPS:
            yield from _names(values.get(KEY))
        defaults = values.get("defaults")
        for entry in defaults if isinstance(defaults, list) else []:
            choices = entry if isinstance(entry, dict) else {"": entry}
            for key, option in choices.items():
                pending += _paths(str(key), option, group)


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _paths(key: str, option: Any, group: str) -> list[str]:
    """Return the paths of the files that an entry of a defaults list chooses in `group`."""
    words = key.split()
    named = words[-1].partition("@")[0] if words else ""
    names = [name for name in (option if isinstance(option, list) else [option]) if name]
    paths = []
    for name in names:
        path = f"{named}/{str(name).removesuffix('.yaml')}" if named else str(name)
        is_absolute = path.startswith("/") or not group
        paths.append(path.lstrip("/") if is_absolute else f"{group}/{path}")
    return paths


def _names(value: Any) -> list[str]:
    listed = value if isinstance(value, list) else [value]
    return [name for name in listed if isinstance(name, str)]


@functools.cache
def _installed() -> dict[str, str | None]:
    """Return the plugins that have an entry point, with the versions of their distributions."""
    entries = importlib.metadata.entry_points(group=ENTRY_POINTS)
    return {entry.module: entry.dist.version if entry.dist else None for entry in entries}


def _version(name: str) -> str | None:
    """Return the version of the installed distribution of a module."""
    top = name.partition(".")[0]
    if version := _installed().get(name):
        return version
    try:
        return importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        pass
    if "site-packages" not in str(getattr(sys.modules[name], "__file__", "")):
        return None
    owners = importlib.metadata.packages_distributions().get(top, [])
    return importlib.metadata.version(owners[0]) if owners else None


def _source(name: str) -> str | None:
    """Return the digest of a module's file, or of all sources of a package."""
    module = sys.modules[name]
    if folders := list(getattr(module, "__path__", [])):
        folder = Path(folders[0])
        return source_digest(folder, folder.rglob("*.py"))
    file = getattr(module, "__file__", None)
    return source_digest(Path(file).parent, [Path(file)]) if file else None
