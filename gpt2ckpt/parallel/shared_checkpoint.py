"""One checkpoint for all ranks: the first names it, each reads it, and none takes another."""

import json
from pathlib import Path

from gpt2ckpt.checkpoint.reading import load_state, read_meta, seal_of
from gpt2ckpt.checkpoint.store import Found
from gpt2ckpt.errors import InputError
from gpt2ckpt.parallel.process_group import ProcessGroup, SingleProcess


def identify(found: Found) -> tuple[str, str]:
    """The path and the seal of a checkpoint that this rank has read, for the others to read it.

    Raises InputError if the file was replaced since, as latest.pt is by each save of a live run.
    """
    seal, meta = seal_of(found.path), read_meta(found.path)
    state = found.state
    if (meta.run, meta.step, meta.saved_at) != (state.run, state.step, state.saved_at):
        raise InputError(
            f"{found.path} was replaced while it was being read: give the command again, or name a "
            "file that stays, such as a rolling checkpoint"
        )
    return str(found.path), seal


def load_identified(path: Path, seal: str) -> Found:
    """The checkpoint at `path`. Raises InputError if it is not the one with that `seal`."""
    found = Found(path, load_state(path))
    if seal_of(path) != seal:
        raise InputError(
            f"{path} is another file here than for the first rank: all ranks need the same "
            "run directory"
        )
    return found


def agree_on_checkpoint(found: Found | None, group: ProcessGroup) -> Found | None:
    """On every rank what the first has found, read by each. A meeting of all ranks."""
    if isinstance(group, SingleProcess):
        return found
    name = identify(found) if found is not None else None
    named = json.loads(group.broadcast(json.dumps(name)))
    if named is None or found is not None:
        return found
    return load_identified(Path(named[0]), named[1])
