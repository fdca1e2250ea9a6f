"""One checkpoint for all ranks: the first names it, each reads it, and none takes another."""

import json
from pathlib import Path

from gpt2ckpt.checkpoint.reading import load, seal_of
from gpt2ckpt.checkpoint.store import Found
from gpt2ckpt.errors import InputError
from gpt2ckpt.parallel.group import Alone, Team


def read_named(path: Path, seal: str) -> Found:
    """The checkpoint at `path`. Raises InputError if it is not the one with that `seal`."""
    found = Found(path, load(path))
    if seal_of(path) != seal:
        raise InputError(
            f"{path} is another file here than for the first rank: all ranks need the same "
            "run directory"
        )
    return found


def share(found: Found | None, team: Team) -> Found | None:
    """On every rank what the first has found, read by each. A meeting of all ranks."""
    if isinstance(team, Alone):
        return found
    name = [str(found.path), seal_of(found.path)] if found is not None else None
    named = json.loads(team.first_says(json.dumps(name)))
    if named is None or found is not None:
        return found
    return read_named(Path(named[0]), named[1])
