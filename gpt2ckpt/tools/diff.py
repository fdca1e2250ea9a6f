"""`diff`: what differs between two checkpoints, and what that means for a training."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gpt2ckpt.checkpoint import format
from gpt2ckpt.checkpoint.reading import check
from gpt2ckpt.config.replay import Change, Effect, classify, difference, flatten
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.tools import text
from gpt2ckpt.tools.command_line import Verb
from gpt2ckpt.tools.places import PATH_HELP, checkpoint_named

FACTS = ("step", "epoch", "tokens_seen", "train_loss", "val_loss", "best_val_loss", "run", "reason")
CHUNK = 8 << 20  # bytes of each file that are in memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of `diff`."""
    parser.add_argument("a", metavar="A", help=PATH_HELP)
    parser.add_argument("b", metavar="B", help="likewise")
    parser.add_argument(
        "--tensors",
        action="store_true",
        help="compare every tensor bitwise; exit code 1 if any differs",
    )


def run(args: argparse.Namespace) -> int:
    """Verify both, print what differs; 1 if tensors were to be compared and one differs."""
    paths = [checkpoint_named(args.a), checkpoint_named(args.b)]
    for path in paths:
        check(path)
    with paths[0].open("rb") as first, paths[1].open("rb") as second:
        a, b = format.read_index(first), format.read_index(second)
        for name, path in zip("AB", paths, strict=True):
            print(f"{name}  {path}")
        for line in _facts(a.meta, b.meta) + _config(a.meta, b.meta):
            print(line)
    if not args.tensors:
        return 0
    differing, count = compare_tensors(*paths)
    for line in differing:
        print(line)
    compared = text.plural(count, "tensor")
    print(f"{len(differing)} of {compared} differ" if differing else f"{compared}: all the same")
    return 1 if differing else 0


def compare_tensors(path: Path, other: Path) -> tuple[list[str], int]:
    """A line for each tensor that is not bitwise the same, and how many tensors there are.

    Raises CheckpointError for a file that is no checkpoint; digests are not checked here.
    """
    with path.open("rb") as first, other.open("rb") as second:
        a, b = format.read_index(first), format.read_index(second)
        return list(_tensors(first, a, second, b)), len({*format.tensors(a), *format.tensors(b)})


def _facts(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    old, new = (flatten({fact: meta.get(fact) for fact in FACTS}) for meta in (a, b))
    return [str(change) for change in difference(old, new)] or ["step, losses and run are the same"]


def _config(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The keys of the config that differ, under what they do; the gravest first."""
    old, new = flatten(_dict(a, "config")), flatten(_dict(b, "config"))
    changes = difference(old, new)
    lines = [] if changes else ["the configs are the same"]
    for effect in reversed(Effect):
        group = [change for change in changes if _effect(change, old, new) is effect]
        lines += [f"config, {effect}:"] * bool(group) + [f"  {change}" for change in group]
    return lines


def _effect(change: Change, old: dict[str, Any], new: dict[str, Any]) -> Effect:
    """Harmless only if it is so by both configs."""
    first, second = classify(change.key, old), classify(change.key, new)
    return second if first is Effect.HARMLESS else first


def _dict(meta: dict[str, Any], key: str) -> dict[str, Any]:
    value = meta.get(key)
    return value if isinstance(value, dict) else {}


def _tensors(first: BinaryIO, a: format.Index, second: BinaryIO, b: format.Index) -> Iterator[str]:
    """A line for each tensor that is not bitwise the same in type, shape and every value."""
    ours, theirs = format.tensors(a), format.tensors(b)
    for name in ours.keys() - theirs.keys():
        yield f"{name}: only in A"
    for name in theirs.keys() - ours.keys():
        yield f"{name}: only in B"
    for name in (name for name in ours if name in theirs):
        (dtype, shape, storage), (their_dtype, their_shape, other) = ours[name], theirs[name]
        if (dtype, shape) != (their_dtype, their_shape):
            yield f"{name}: {dtype} {shape} → {their_dtype} {their_shape}"
        elif not _same_bytes(first, storage.offset, second, other.offset, storage.size):
            yield f"{name}: its values differ"


def _same_bytes(first: BinaryIO, start: int, second: BinaryIO, other: int, size: int) -> bool:
    first.seek(start)
    second.seek(other)
    while size > 0:
        part = first.read(min(size, CHUNK))
        if not part:
            raise CheckpointError(f"{Path(first.name)} has become shorter while it was read")
        if part != second.read(len(part)):
            return False
        size -= len(part)
    return True


VERB = Verb(
    "show what differs between two checkpoints",
    ("latest best", "run_a/checkpoints/latest.pt run_b --tensors"),
    add_arguments,
    run,
)
