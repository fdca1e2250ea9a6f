"""`show`: print the metadata and the frozen config of a checkpoint, without its tensors."""

import argparse
from typing import Any

import yaml

from gpt2ckpt.checkpoint.reading import read_head
from gpt2ckpt.loggers.metrics_file import to_json
from gpt2ckpt.tools.command_line import Subcommand, add_json
from gpt2ckpt.tools.targets import add_path, checkpoint_named
from gpt2ckpt.units import human_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `show`."""
    add_path(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print metadata and frozen config as a YAML document or a JSON object."""
    path = checkpoint_named(args.path)
    meta = read_head(path)
    if args.json:
        print(to_json({"path": str(path), **meta}))
        return 0
    config = meta.pop("config", {})
    size = human_bytes(path.stat().st_size)
    print(
        _yaml({"path": str(path), "size": size, **meta})
        + "\n# the frozen config\n"
        + _yaml({"config": config}),
        end="",
    )
    return 0


def _yaml(values: dict[str, Any]) -> str:
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=80))


SUBCOMMAND = Subcommand(
    "show the metadata and the frozen config of a checkpoint",
    ("latest", "outputs/gpt2_run_20251106_143022", "best --json | jq .config.optimizer"),
    add_arguments,
    run,
)
