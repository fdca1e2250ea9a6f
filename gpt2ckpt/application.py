"""What the commands with a config share: Hydra's command line."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser

from gpt2ckpt.config.compose import (
    compose_config,
    conf_directory,
    explained,
    refuse_non_choices,
)
from gpt2ckpt.config.registry import build_typed, register_schemas
from gpt2ckpt.config.texts import with_texts
from gpt2ckpt.errors import ConfigError, did_you_mean
from gpt2ckpt.exits import FULL_ERROR, reported_errors


@dataclass(frozen=True)
class CommandLine:
    """What was typed: overrides, and the flags that Hydra answers itself."""

    flags: list[str]
    overrides: list[str]
    config_name: str
    config_dir: Path | None
    multirun: bool
    asks_hydra: bool  # --help, --cfg, --info, shell completion: nothing is run


def parse_command_line(config_name: str) -> CommandLine:
    """Parse sys.argv as Hydra does. Raises ConfigError naming the nearest flag."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        words = [word for word in message.split() if word.startswith("-")]
        word = words[0].partition("=")[0] if words else message.rpartition(" ")[2]
        hint = did_you_mean(word, flags, cutoff=0.75) or (
            " Settings are written key=value, without dashes; --help lists what there is."
        )
        raise ConfigError(f"{message}.{hint}")

    parser.error = refuse  # type: ignore[method-assign]
    # Intermixed: flags may stand anywhere among the overrides.
    args: argparse.Namespace = parser.parse_intermixed_args()
    flags = [word for word in sys.argv[1:] if word not in args.overrides]
    asks = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion
    config_dir = Path(args.config_dir) if args.config_dir else None
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir={config_dir}: there is no such directory")
    return CommandLine(
        flags=flags,
        overrides=with_texts(list(args.overrides), config_name),
        config_name=args.config_name or config_name,
        config_dir=config_dir,
        multirun=bool(args.multirun),
        asks_hydra=bool(asks or args.experimental_rerun),
    )


def run_simple(name: str, task: Callable[[Any], None]) -> None:
    """The whole of a command that makes no run directory: its typed config goes to `task`."""
    with reported_errors():
        line = parse_command_line(name)
        if line.asks_hydra:
            ask_hydra(line)
            return
        if line.multirun:
            raise ConfigError(f"{name} has no multirun: leave -m out")
        composed = compose_config(line.config_name, line.overrides, line.config_dir)
        task(build_typed(name, composed.values))


def ask_hydra(line: CommandLine) -> None:
    """Let Hydra answer --help, --cfg and the like."""
    refuse_non_choices(line.overrides)
    with explained(line.config_name):
        run_hydra(line, lambda config: None)


def run_hydra(line: CommandLine, task: Callable[[Any], Any], more: Sequence[str] = ()) -> None:
    """Let Hydra run `task` with this command line, plus the overrides `more`.

    What is raised in it comes out as it is: Hydra's own printing and exit code 1 are left out.
    """
    register_schemas()
    arguments, full = sys.argv, os.environ.get(FULL_ERROR)
    sys.argv = [arguments[0], *line.flags, *line.overrides, *more]
    os.environ[FULL_ERROR] = "1"
    try:
        conf = str(conf_directory())
        hydra.main(version_base="1.3", config_path=conf, config_name=line.config_name)(task)()
    finally:
        sys.argv = arguments
        os.environ.pop(FULL_ERROR)
        if full is not None:
            os.environ[FULL_ERROR] = full
