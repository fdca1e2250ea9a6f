"""`diff`: print the differences between two checkpoints and their effects on training."""

import argparse
from typing import Any

from gpt2ckpt.checkpoint import format
from gpt2ckpt.checkpoint.reading import check, compare_tensors
from gpt2ckpt.checkpoint.state import CheckpointMeta
from gpt2ckpt.config.options import Effect
from gpt2ckpt.config.replay import Change, classify, difference, flatten
from gpt2ckpt.tools.command_line import Subcommand
from gpt2ckpt.tools.targets import PATH_HELP, checkpoint_named
from gpt2ckpt.units import plural

METADATA = (
    "step",
    "epoch",
    "tokens_seen",
    "train_loss",
    "val_loss",
    "best_val_loss",
    "run",
    "reason",
    "stopped_by",
    "callbacks",
    "environment",
    "versions",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `diff`."""
    parser.add_argument("a", metavar="A", help=PATH_HELP)
    parser.add_argument(
        "b", metavar="B", help="the second checkpoint: a file, a run directory or a name as for A"
    )
    parser.add_argument(
        "--tensors",
        action="store_true",
        help="compare every tensor bitwise; exit code 1 if any differs",
    )


def run(args: argparse.Namespace) -> int:
    """Verify both files and print what differs; with --tensors, return 1 if a tensor differs."""
    paths = [checkpoint_named(args.a), checkpoint_named(args.b)]
    for path in paths:
        check(path)
    with paths[0].open("rb") as first, paths[1].open("rb") as second:
        a, b = format.read_index(first), format.read_index(second)
        for name, path in zip("AB", paths, strict=True):
            print(f"{name}  {path}")
        for line in _metadata(a.meta, b.meta) + _config(a.meta, b.meta):
            print(line)
    if not args.tensors:
        return 0
    differing, count = compare_tensors(*paths)
    for line in differing:
        print(line)
    compared = plural(count, "tensor")
    print(f"{len(differing)} of {compared} differ" if differing else f"{compared}: all the same")
    return 1 if differing else 0


def _metadata(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    old, new = (flatten(_metadata_of(meta)) for meta in (a, b))
    return [str(change) for change in difference(old, new)] or ["step, losses and run are the same"]


def _metadata_of(meta: dict[str, Any]) -> dict[str, Any]:
    plugins = CheckpointMeta.from_dict(meta).plugins or []
    used = {plugin.module: vars(plugin) for plugin in plugins}
    return {**{key: meta.get(key) for key in METADATA}, "plugins": used}


def _config(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Return lines for the config keys that differ, by effect, the most serious effect first."""
    old, new = flatten(_dict(a, "config")), flatten(_dict(b, "config"))
    changes = difference(old, new)
    lines = [] if changes else ["the configs are the same"]
    for effect in reversed(Effect):
        group = [change for change in changes if _effect(change, old, new) is effect]
        lines += [f"config, {effect}:"] * bool(group) + [f"  {change}" for change in group]
    return lines


def _effect(change: Change, old: dict[str, Any], new: dict[str, Any]) -> Effect:
    """Return the effect of a change: harmless only if the key is harmless in both configs."""
    first, second = classify(change.key, old), classify(change.key, new)
    return second if first is Effect.HARMLESS else first


def _dict(meta: dict[str, Any], key: str) -> dict[str, Any]:
    value = meta.get(key)
    return value if isinstance(value, dict) else {}


SUBCOMMAND = Subcommand(
    "show what differs between two checkpoints",
    ("latest best", "run_a/checkpoints/latest.pt run_b --tensors"),
    add_arguments,
    run,
)
