"""The options of the groups of a config: built-in ones and those of plugins, by name.

An option has a config class, whose fields are the keys of the group, and a builder. The decorators
of `gpt2ckpt.extend` register both. Nothing here or below imports a plugin.
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt2ckpt.errors import ConfigError, UserError

GROUPS = ("model", "data", "optimizer", "schedule", "logger", "callback")
CALLBACK = "callback"  # the group of which several options can be chosen
DEFAULT_KINDS = {"model": "gpt2", "logger": "standard"}  # of a config that has no `kind` there
BUILT_IN = "gpt2ckpt.builtin"
NAME = re.compile(r"[A-Za-z]\w*")
EFFECT, HELP = "effect", "help"  # metadata of a field


class Effect(StrEnum):
    """The effect on a training of another value of a key."""

    HARMLESS = "harmless"
    TRAJECTORY = "changes the trajectory"
    SHAPE = "breaks the shape"


class PluginError(UserError):
    """A plugin that raised an exception; `__cause__` is the exception."""


@dataclass(frozen=True)
class Option:
    """A registered option, for example `optimizer=adamw`.

    Attributes:
        group: The config group.
        name: The name of the option, which is `kind` in a config.
        config: The dataclass of the keys and their defaults.
        build: Returns the object that a config describes.
        module: The module that registered the option.
    """

    group: str
    name: str
    config: type
    build: Callable[..., Any]
    module: str

    @property
    def is_built_in(self) -> bool:
        return self.module == BUILT_IN

    def __str__(self) -> str:
        return f"{self.group} {self.name!r} (plugin {plugin_of(self)})"

    def schema(self) -> DictConfig:
        """Return the schema of the group: `kind`, then the fields of the config class."""
        kind = OmegaConf.create({"kind": self.name})
        schema = OmegaConf.merge(kind, OmegaConf.structured(self.config))
        assert isinstance(schema, DictConfig)
        return schema

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Raise PluginError with the name of this option for an exception of a plugin.

        Errors for the user and exhausted memory are raised as they are.
        """
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Exception as error:
            if self.is_built_in or type(error).__name__ == "OutOfMemoryError":
                raise
            raise PluginError(f"{self} raised {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Plugin:
    """A module that the user switched on.

    Attributes:
        module: Its name.
        version: The version of its installed distribution, if it has one.
        source: A digest of its source files, as they were when it was imported; None if it has no
            files.
        is_installed: Whether an entry point switches it on, so that no command has to name it.
    """

    module: str
    version: str | None = None
    source: str | None = None
    is_installed: bool = False


OPTIONS: dict[str, dict[str, Option]] = {group: {} for group in GROUPS}
PLUGINS: dict[str, Plugin] = {}  # those that are switched on, by name


def register(option: Option) -> None:
    """Add an option.

    Raises:
        ConfigError: The name is taken, or the config class cannot be used.
    """
    if NAME.fullmatch(option.name) is None:
        raise ConfigError(
            f"{option.group} {option.name!r} (in {option.module}) cannot be chosen by this name: "
            "use letters, digits and _, and begin with a letter"
        )
    there = OPTIONS[option.group].get(option.name)
    if there is not None and (there.module != option.module or _is_first_import(option.module)):
        raise ConfigError(
            f"{option.group}={option.name} is registered twice, by {there.module} and by "
            f"{option.module}: rename one of the two options"
        )
    _check_class(option)
    OPTIONS[option.group][option.name] = option


def forget(module: str) -> None:
    """Remove the options of a module that could not be imported."""
    for options in OPTIONS.values():
        for option in [option for option in options.values() if option.module == module]:
            del options[option.name]


def plugin_of(option: Option) -> str:
    """Return the plugin that an option belongs to: the module, or the package around it."""
    module = f"{option.module}."
    owners = [name for name in PLUGINS if module.startswith(f"{name}.")]
    return max(owners, key=len, default=option.module)


def options_in(config: dict[str, Any]) -> list[Option]:
    """Return the options that a config of plain values uses and that are registered."""
    kinds = [(group, config.get(group)) for group in GROUPS if group != CALLBACK]
    kinds += [(CALLBACK, content) for content in (config.get(CALLBACK) or {}).values()]
    found = []
    for group, content in kinds:
        kind = content.get("kind", DEFAULT_KINDS.get(group)) if isinstance(content, dict) else None
        if isinstance(kind, str) and kind in OPTIONS[group]:
            found.append(OPTIONS[group][kind])
    return found


def setting(
    default: Any = dataclasses.MISSING, *, effect: str | None = None, help: str = ""
) -> Any:
    """Return a dataclass field with a meaning and an effect.

    Args:
        default: The default; a list or dict is copied for each config. Without one, the user must
            set the key.
        effect: What another value of the key means for a resume: "harmless" (the weights stay the
            same), "trajectory" (the weights change) or "shape" (the saved state does not fit).
            None: harmless for a logger, else trajectory.
        help: The meaning, which --help prints; without it, the comment behind the field counts.
    """
    if effect is not None and effect.upper() not in Effect.__members__:
        raise ConfigError(f"effect={effect!r} of a setting must be harmless, trajectory or shape")
    metadata = {EFFECT: effect, HELP: help}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: deepcopy(default), metadata=metadata)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def effect_of(option: Option, leaf: str) -> Effect:
    """Return the effect of another value of the key `leaf` of an option."""
    for part in dataclasses.fields(option.config):
        if part.name == leaf and (effect := part.metadata.get(EFFECT)):
            return Effect[effect.upper()]
    return Effect.HARMLESS if option.group == "logger" else Effect.TRAJECTORY


def _is_first_import(module: str) -> bool:
    """Return whether `module` is being imported, and not executed again, as in a notebook."""
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _check_class(option: Option) -> None:
    """Raise ConfigError if the config class of an option cannot be a schema."""
    cls, problem = option.config, ""
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        problem = "its config class must be a dataclass: decorate it with @dataclass"
    elif cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        problem = f"{cls.__name__} must not be frozen: overrides are merged into it"
    else:
        names = {part.name for part in dataclasses.fields(cls)}
        wanted = {"block_size", "vocab_size"} if option.group == "model" else set()
        if "kind" in names:
            problem = f"{cls.__name__} must not have the field kind, which is the option's name"
        elif wanted - names:
            problem = f"{cls.__name__} needs the fields block_size and vocab_size"
        else:
            try:
                OmegaConf.structured(cls)
            except (OmegaConfBaseException, ValueError) as error:
                problem = f"{cls.__name__} cannot be a schema: {str(error).splitlines()[0]}"
    if problem:
        raise ConfigError(f"{option.group} {option.name!r} (in {option.module}): {problem}")
