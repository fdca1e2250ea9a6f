"""`show`: print the metadata and the frozen config of a checkpoint, without its tensors."""

import argparse
from typing import Any

import yaml

from gpt2ckpt.checkpoint.reading import read_head
from gpt2ckpt.loggers.metrics_file import to_json
from gpt2ckpt.tools import formatting
from gpt2ckpt.tools.command_line import Verb, add_json
from gpt2ckpt.tools.targets import PATH_HELP, checkpoint_named


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `show`."""
    parser.add_argument("path", metavar="PATH", help=PATH_HELP)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print metadata and frozen config as a YAML document or a JSON object."""
    path = checkpoint_named(args.path)
    meta = read_head(path)
    if args.json:
        print(to_json({"path": str(path), **meta}))
        return 0
    config = meta.pop("config", {})
    size = path.stat().st_size
    facts: dict[str, Any] = {"path": str(path), "size": formatting.long_bytes(size), **meta}
    print(_yaml(facts) + "\n# the frozen config\n" + _yaml({"config": config}), end="")
    return 0


def _yaml(values: dict[str, Any]) -> str:
    dumped = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=formatting.WIDTH)
    return str(dumped)


VERB = Verb(
    "show the metadata and the frozen config of a checkpoint",
    ("latest", "outputs/gpt2_run_20251106_143022", "best --json | jq .config.optimizer"),
    add_arguments,
    run,
)
