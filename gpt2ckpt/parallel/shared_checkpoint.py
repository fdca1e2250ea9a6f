"""Lets all ranks load the same checkpoint: the first rank chooses it, and the others verify it."""

import json
from pathlib import Path

from gpt2ckpt.checkpoint.newest_valid import Found
from gpt2ckpt.checkpoint.reading import load_state, read_meta, seal_of
from gpt2ckpt.errors import InputError
from gpt2ckpt.parallel.process_group import ProcessGroup, SingleProcess


def identify(found: Found) -> tuple[str, str]:
    """Return the path and the seal of a loaded checkpoint; the seal is the digest of the file.

    Raises:
        InputError: The file was replaced after it was loaded. Each save of a live run replaces
            latest.pt.
    """
    seal, meta = seal_of(found.path), read_meta(found.path)
    state = found.state
    if (meta.run, meta.step, meta.saved_at) != (state.run, state.step, state.saved_at):
        raise InputError(
            f"{found.path} was replaced while it was being read: repeat the command, or pass a "
            "file that is not replaced, such as a rolling checkpoint"
        )
    return str(found.path), seal


def load_identified(path: Path, seal: str) -> Found:
    """Load the checkpoint at `path`. Raises InputError if it does not have that `seal`."""
    found = Found(path, load_state(path))
    if seal_of(path) != seal:
        raise InputError(
            f"{path} differs from the file on the first rank: make the same run directory "
            "available to all ranks"
        )
    return found


def agree_on_checkpoint(found: Found | None, group: ProcessGroup) -> Found | None:
    """Load the checkpoint that the first rank found. All ranks must call this function."""
    if isinstance(group, SingleProcess):
        return found
    name = identify(found) if found is not None else None
    named = json.loads(group.broadcast(json.dumps(name)))
    if named is None or found is not None:
        return found
    return load_identified(Path(named[0]), named[1])
