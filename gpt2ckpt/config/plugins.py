"""Import the plugins that the user switched on: modules that register options.

Only the command line, the user's own config files and installed packages name plugins. A
checkpoint, a frozen config or another file of a run never causes an import.
"""

import importlib
import os
import traceback
from collections.abc import Iterable

from gpt2ckpt.config.compose import parse_override
from gpt2ckpt.errors import ConfigError, UserError

KEY = "plugins"


def plugins_in(overrides: Iterable[str]) -> list[str] | None:
    """Return the plugins that a command line names; None if it does not name any."""
    found = None
    for argument in overrides:
        parsed = parse_override(argument) if argument.lstrip("+").startswith(f"{KEY}=") else None
        value = parsed.value() if parsed else None
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            found = value
    return found


def load(names: Iterable[str]) -> None:
    """Import plugins, each once.

    Raises:
        ConfigError: A plugin does not exist or cannot be imported, or it registers an option that
            another module has registered.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except UserError:
            raise
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise _cannot_import(name, error) from error
            raise ConfigError(
                f"there is no plugin module {name!r}: it is searched on Python's path, which is "
                "the current directory with `python -m`, the folders in PYTHONPATH, and installed "
                "packages"
            ) from error
        except (Exception, SystemExit) as error:
            raise _cannot_import(name, error) from error


def _cannot_import(name: str, error: BaseException) -> ConfigError:
    frames = traceback.extract_tb(error.__traceback__)
    where = f", {os.path.relpath(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return ConfigError(
        f"the plugin {name} cannot be imported: {reason} (HYDRA_FULL_ERROR=1 shows where{where})"
    )
