"""All ranks load the same checkpoint: the first names it, and each rank checks its identity."""

import json
from pathlib import Path

from gpt2ckpt.checkpoint.newest_valid import Found
from gpt2ckpt.checkpoint.reading import load_state, read_meta, seal_of
from gpt2ckpt.errors import InputError
from gpt2ckpt.parallel.process_group import ProcessGroup, SingleProcess


def identify(found: Found) -> tuple[str, str]:
    """Return the path and the seal of a loaded checkpoint, for other ranks to load the same file.

    Raises:
        InputError: The file was replaced since it was loaded, as each save of a live run replaces
            latest.pt.
    """
    seal, meta = seal_of(found.path), read_meta(found.path)
    state = found.state
    if (meta.run, meta.step, meta.saved_at) != (state.run, state.step, state.saved_at):
        raise InputError(
            f"{found.path} was replaced while it was being read: repeat the command, or name a "
            "file that is not replaced, such as a rolling checkpoint"
        )
    return str(found.path), seal


def load_identified(path: Path, seal: str) -> Found:
    """Load the checkpoint at `path`. Raises InputError if it does not have that `seal`."""
    found = Found(path, load_state(path))
    if seal_of(path) != seal:
        raise InputError(
            f"{path} is another file here than on the first rank: all ranks need the same run "
            "directory"
        )
    return found


def agree_on_checkpoint(found: Found | None, group: ProcessGroup) -> Found | None:
    """Return the checkpoint that the first rank found, loaded by each; all ranks must call it."""
    if isinstance(group, SingleProcess):
        return found
    name = identify(found) if found is not None else None
    named = json.loads(group.broadcast(json.dumps(name)))
    if named is None or found is not None:
        return found
    return load_identified(Path(named[0]), named[1])
