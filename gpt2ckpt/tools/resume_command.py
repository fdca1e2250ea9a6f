"""`resume-command`: print the command that resumes from a checkpoint, with all settings."""

import argparse
from pathlib import Path
from typing import Any

from gpt2ckpt.checkpoint.reading import read_meta
from gpt2ckpt.config.compose import in_shell, spelled
from gpt2ckpt.config.earlier import completed
from gpt2ckpt.config.registry import SINGLE
from gpt2ckpt.config.replay import flatten
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.runs.command import command
from gpt2ckpt.tools.command_line import Subcommand
from gpt2ckpt.tools.targets import PATH_HELP, checkpoint_named

GROUPS = ("model", "data", "optimizer", "schedule", "trainer", "checkpoint")
NOT_SPELLABLE = "???"  # Hydra reads this string as a missing value, even in quotes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `resume-command`."""
    parser.add_argument("path", metavar="PATH", help=PATH_HELP)


def run(args: argparse.Namespace) -> int:
    """Print the command."""
    path = checkpoint_named(args.path)
    try:
        print(resume_command(path, completed(read_meta(path).config)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not hold the config of a run: pass a checkpoint of gpt2ckpt.train"
        ) from error
    return 0


def resume_command(path: Path, config: dict[str, Any]) -> str:
    """Return the shell command that resumes from `path`, which has the frozen `config`."""
    arguments = [f"+resume={spelled(str(path.resolve()))}", *overrides(config)]
    return command("train", *map(in_shell, arguments), anywhere=True)


def overrides(config: dict[str, Any]) -> list[str]:
    """Return the overrides that compose `config`: the choices of groups, then each key."""
    keys = flatten({group: config[group] for group in (*GROUPS, "seed") if group in config})
    choices = [
        f"{group}={keys.pop(f'{group}.kind')}" for group in SINGLE if f"{group}.kind" in keys
    ]
    return choices + [
        f"{key}={spelled(value)}" for key, value in keys.items() if value != NOT_SPELLABLE
    ]


SUBCOMMAND = Subcommand(
    "print the command that resumes from a checkpoint, with all settings",
    ("latest", "outputs/gpt2_run_20251106_143022/checkpoints/best_model.pt"),
    add_arguments,
    run,
)
