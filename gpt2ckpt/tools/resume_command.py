"""`resume-command`: print the command that resumes from a checkpoint, with all settings."""

import argparse
from pathlib import Path
from typing import Any

from gpt2ckpt.checkpoint.reading import read_meta
from gpt2ckpt.checkpoint.state import PluginIdentity
from gpt2ckpt.config.compose import in_shell, spelled
from gpt2ckpt.config.earlier import completed
from gpt2ckpt.config.options import CALLBACK
from gpt2ckpt.config.registry import SINGLE
from gpt2ckpt.config.replay import flatten
from gpt2ckpt.runs.command import command
from gpt2ckpt.runs.plugins import plugins_override
from gpt2ckpt.runs.resume import no_config
from gpt2ckpt.tools.command_line import Subcommand
from gpt2ckpt.tools.targets import add_path, checkpoint_named

GROUPS = ("model", "data", "optimizer", "schedule", "trainer", "checkpoint", CALLBACK)
NOT_SPELLABLE = "???"  # Hydra reads this string as a missing value, even in quotes


def run(args: argparse.Namespace) -> int:
    """Print the command."""
    path = checkpoint_named(args.path)
    try:
        meta = read_meta(path)
        print(resume_command(path, completed(meta.config), meta.plugins))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise no_config(path) from error
    return 0


def resume_command(
    path: Path, config: dict[str, Any], plugins: list[PluginIdentity] | None = None
) -> str:
    """Return the shell command that resumes from `path`.

    Args:
        path: The checkpoint file.
        config: Its frozen config.
        plugins: The plugins that it needs.
    """
    needed = [plugins_override([plugin.module for plugin in plugins])] if plugins else []
    arguments = [*needed, f"+resume={spelled(str(path.resolve()))}", *overrides(config)]
    return command("train", *map(in_shell, arguments), anywhere=True)


def overrides(config: dict[str, Any]) -> list[str]:
    """Return the overrides that compose `config`: the choices of groups, then each key."""
    keys = flatten({group: config[group] for group in (*GROUPS, "seed") if group in config})
    choices = [
        f"{group}={keys.pop(f'{group}.kind')}" for group in SINGLE if f"{group}.kind" in keys
    ]
    callbacks = config.get(CALLBACK) or {}
    if callbacks:
        names = [content["kind"] for content in callbacks.values()]
        choices.append(f"{CALLBACK}={spelled(names)}")
    return choices + [
        f"{key}={spelled(value)}"
        for key, value in keys.items()
        if value != NOT_SPELLABLE and not key.endswith(".kind")
    ]


SUBCOMMAND = Subcommand(
    "print the command that resumes from a checkpoint, with all settings",
    ("latest", "outputs/gpt2_run_20251106_143022/checkpoints/best_model.pt"),
    add_path,
    run,
)
