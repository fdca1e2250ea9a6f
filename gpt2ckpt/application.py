"""Parses the command lines of commands that take a config, as Hydra does."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser

from gpt2ckpt.config import plugins
from gpt2ckpt.config.compose import (
    VERSION_BASE,
    compose_config,
    conf_directory,
    refuse_non_options,
)
from gpt2ckpt.config.explain import explained
from gpt2ckpt.config.help import page
from gpt2ckpt.config.registry import build_typed, key_meant, register_schemas
from gpt2ckpt.config.replay import Values
from gpt2ckpt.config.strings import quote_strings
from gpt2ckpt.errors import ConfigError, did_you_mean
from gpt2ckpt.exits import FULL_ERROR, reported_errors


@dataclass(frozen=True)
class CommandLine:
    """A parsed command line.

    Attributes:
        root: the command, whose config has the keys.
        flags: the flags, for Hydra.
        overrides: the overrides, with strings quoted for Hydra.
        config_name: the primary config.
        config_dir: the user's config folder.
        plugins: the plugins that are switched on, and imported.
        multirun: whether the command line is a sweep.
        asks_hydra: whether no command is run (--help, --cfg, --info, shell completion).
        asks_help: whether --help was given.
    """

    root: str
    flags: list[str]
    overrides: list[str]
    config_name: str
    config_dir: Path | None
    plugins: list[str]
    multirun: bool
    asks_hydra: bool
    asks_help: bool


def parse_command_line(root: str, arguments: Sequence[str] | None = None) -> CommandLine:
    """Parse `arguments`, or else sys.argv, for the command `root`.

    Raises ConfigError, with the nearest flag.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(_explain_flag(message, parser, root, arguments))

    parser.error = refuse  # type: ignore[method-assign]
    if (typed := _first_unknown_flag(parser, arguments)) and key_meant(typed, root):
        refuse(f"unrecognized arguments: {typed}")  # argparse would read -prompt as -p rompt
    # Intermixed: flags and overrides may be in any order.
    args: argparse.Namespace = parser.parse_intermixed_args(arguments)
    name, config_dir = _config_file(args, root)
    args.config_name = name if name != root else None
    args.config_dir, args.config_path = config_dir and str(config_dir), None
    asks = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion
    overrides = list(args.overrides)
    switched_on = _switch_on_plugins(args, config_dir, name)
    if not args.shell_completion:
        overrides = quote_strings(overrides, root, multirun=bool(args.multirun))
    return CommandLine(
        root=root,
        flags=_spelled_flags(parser, args),
        overrides=overrides,
        config_name=name,
        config_dir=config_dir,
        plugins=switched_on,
        multirun=bool(args.multirun),
        asks_hydra=bool(asks or args.experimental_rerun),
        asks_help=bool(args.help),
    )


def switch_on_plugins(root: str) -> None:
    """Import the plugins that sys.argv names, and check nothing else in it."""
    parse_command_line(root)


def _switch_on_plugins(args: argparse.Namespace, folder: Path | None, name: str) -> list[str]:
    """Import the plugins that the user switched on; return their names.

    While a shell completes half a command line, a plugin that cannot be imported is left out.
    """
    if not args.shell_completion:
        names = plugins.switched_on(args.overrides, folder, name)
        plugins.load(names)
        return names
    names = plugins.switched_on(os.environ.get("COMP_LINE", "").split(), folder, name)
    for plugin in names:
        with contextlib.suppress(ConfigError):
            plugins.load([plugin])
    return names


def _first_unknown_flag(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> str:
    """Return the first argument that looks like a flag but is unknown; empty if there is none."""
    known = {flag for action in parser._actions for flag in action.option_strings}
    for argument in arguments:
        if re.match(r"--?[A-Za-z]", argument) and argument.partition("=")[0] not in known:
            return argument
    return ""


def _explain_flag(
    message: str, parser: argparse.ArgumentParser, root: str, arguments: Sequence[str]
) -> str:
    """Return why a flag is refused, with the nearest flag, or the key that it means."""
    flags = [flag for action in parser._actions for flag in action.option_strings]
    flag = _first_unknown_flag(parser, arguments)
    name, equals, value = flag.partition("=")
    if not flag:
        return f"{message}. --help lists all keys and flags."
    if len(name) > 3 and (hint := did_you_mean(name, flags, cutoff=0.75)):
        return f"{message}.{hint}"
    following = arguments[arguments.index(flag) + 1 :]
    if not equals and following and not re.match(r"-\D|.*=", following[0]):
        value = following[0]
    if instead := key_meant(name, root, value):
        return f"there is no flag {name}: write settings as key=value. Did you mean {instead}?"
    return f"{message}. Write settings as key=value, without dashes; --help lists all keys."


def _config_file(args: argparse.Namespace, root: str) -> tuple[str, Path | None]:
    """Return the name of the primary config and the user's config folder.

    --config-name may be a path. --config-path has the same effect as --config-dir, since the
    command's own config, which the user's config extends, is always that in conf/.
    """
    given = args.config_dir or args.config_path
    flag = "--config-dir" if args.config_dir else "--config-path"
    folder = Path(given).expanduser() if given else None
    name = str(args.config_name or root).removesuffix(".yaml")
    path = Path(name).expanduser()
    if folder is not None and not folder.is_dir():
        is_file = " is a file: pass its folder, and the file as --config-name" * folder.is_file()
        raise ConfigError(f"{flag}={folder}{is_file or ': there is no such directory'}")
    if path.is_absolute() or (folder is None and path.parent != Path()):
        if not path.with_name(f"{path.name}.yaml").is_file():
            raise ConfigError(f"--config-name={args.config_name}: there is no file {path}.yaml")
        if folder is None or not path.is_relative_to(folder.absolute()):
            folder = path.parent
        name = str(path.absolute().relative_to(folder.absolute()))
    own = folder / f"{name}.yaml" if folder else None
    is_ours = (conf_directory() / f"{name}.yaml").is_file()
    if args.config_name and own and own.is_file() and is_ours:
        raise ConfigError(f"{own} has the name of a config of gpt2ckpt: rename the file")
    if not is_ours and not (own and own.is_file()):
        there = sorted(file.stem for file in folder.glob("*.yaml")) if folder else []
        hint = did_you_mean(name, there) or (
            "" if folder else " Pass the folder of your config as --config-dir=DIR."
        )
        where = f" in {folder}" if folder else ""
        raise ConfigError(f"there is no config {name}{where}.{hint}")
    return name, folder


def _spelled_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[str]:
    """Return the flags of `args` as arguments of a command line."""
    flags = []
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if action.option_strings and value:
            flag = action.option_strings[0]
            flags.append(flag if value is True else f"{flag}={value}")
    return flags


def run_simple(
    name: str, task: Callable[[Any], None], check: Callable[[Values], None] = lambda values: None
) -> None:
    """Run a command without a run directory.

    Args:
        name: the command.
        task: runs the command with its typed config.
        check: may raise ConfigError for the composed values, before missing values are refused.
    """
    with reported_errors():
        line = parse_command_line(name)
        if line.asks_hydra:
            ask_hydra(line)
            return
        if line.multirun:
            raise ConfigError(f"{name} has no multirun: leave -m out")
        composed = compose_config(line.config_name, line.overrides, line.config_dir, name)
        check(composed.values)
        task(build_typed(name, composed.values))


def ask_hydra(line: CommandLine) -> None:
    """Print --help, or let Hydra answer --cfg, --info and shell completion."""
    if line.asks_help:
        composed = compose_config(line.config_name, line.overrides, line.config_dir, line.root)
        print(page(line.root, composed, line.config_dir))
        return
    if "--shell-completion" in line.flags and line.overrides != ["install=bash"]:
        with contextlib.suppress(ConfigError), explained(line.root):  # the argument is incomplete
            run_hydra(line, lambda config: None)
        return
    refuse_non_options(line.overrides)
    with explained(line.root, line.config_dir):
        run_hydra(line, lambda config: None)


def run_hydra(line: CommandLine, task: Callable[[Any], Any], more: Sequence[str] = ()) -> None:
    """Let Hydra run `task` with this command line and the overrides `more`.

    Errors of `task` are raised as they are: Hydra does not print them or exit itself.
    """
    register_schemas(line.config_dir)
    arguments, full = sys.argv, os.environ.get(FULL_ERROR)
    sys.argv = [arguments[0], *line.flags, *line.overrides, *more]
    os.environ[FULL_ERROR] = "1"
    try:
        conf = str(conf_directory())
        name = line.config_name
        hydra.main(version_base=VERSION_BASE, config_path=conf, config_name=name)(task)()
    finally:
        sys.argv = arguments
        os.environ.pop(FULL_ERROR)
        if full is not None:
            os.environ[FULL_ERROR] = full
