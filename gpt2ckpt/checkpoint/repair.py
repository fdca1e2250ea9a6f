"""Mending one checkpoints/ folder: a corrupt file is replaced by a verified copy of its state.

The corrupt file is set aside under corrupt_YYYYMMDD_HHMMSS/, never deleted. Call `repair` only
while no other process saves into the folder.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from gpt2ckpt.checkpoint import format, names
from gpt2ckpt.checkpoint.aside import ABANDONED, CORRUPT, folders_aside, free_name
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.reading import blameless, check, read_meta
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.files import durable

INDEPENDENT = (Role.ROLLING_BACKUP, Role.BEST_BACKUP)  # second copies, in blocks of their own

Identity = tuple[str, ...]


@dataclass(frozen=True)
class Corrupt:
    """A file on disk with damaged bytes, all its names in the folder, and what is wrong."""

    names: list[Path]
    reason: str


@dataclass(frozen=True)
class Diagnosis:
    """The files of a folder, each with all of its names there."""

    valid: list[list[Path]] = field(default_factory=list)
    corrupt: list[Corrupt] = field(default_factory=list)


@dataclass(frozen=True)
class Mended:
    """What was done about a corrupt file; without a `source` there is no copy, and nothing was."""

    corrupt: Corrupt
    source: Path | None
    aside: Path | None = None


def diagnose(folder: Path) -> Diagnosis:
    """Read every checkpoint of a folder, abandoned ones too; each file once, whatever its names.

    Raises OSError if one cannot be read for a reason that says nothing of its bytes.
    """
    found = Diagnosis()
    for same in same_files(folder):
        try:
            check(same[0])
            found.valid.append(same)
        except CheckpointError as error:
            if reason := blameless(error):
                raise reason from error
            if same[0].exists():  # else deleted meanwhile by a live run
                found.corrupt.append(Corrupt(same, str(error)))
    return found


def same_files(folder: Path) -> list[list[Path]]:
    """The checkpoints of a folder, abandoned ones too, as files with all of their names there."""
    abandoned = [path for aside in folders_aside(folder, ABANDONED) for path in aside.iterdir()]
    paths = [path for path in (*folder.iterdir(), *abandoned) if names.role_of(path.name)]
    return _by_inode(sorted(paths, key=lambda path: (path.parent != folder, path)))


def repair(folder: Path, found: Diagnosis, when: datetime) -> list[Mended]:
    """Replace every corrupt file of which a valid copy is left.

    Every name that is meant to share blocks shares them again, and every second copy is in blocks
    of its own again. Raises OSError or CheckpointError; a name then stands for what it stood for,
    or for the valid copy.
    """
    aside = free_name(folder, CORRUPT, when)
    mended = []
    for corrupt in found.corrupt:
        sources = _copies_of(corrupt, found.valid)
        if not sources:
            mended.append(Mended(corrupt, None))
            continue
        for name in corrupt.names:
            kept = aside / name.relative_to(folder)
            durable.make_directory(kept.parent)
            durable.link(name, kept)
        _replace(corrupt.names, sources)
        mended.append(Mended(corrupt, sources[0][0], aside))
    return mended


def _replace(damaged: list[Path], sources: list[list[Path]]) -> None:
    """Give `damaged` names a valid state again, of which each source is a file by its names."""
    partner = next((same[0] for same in sources if not any(map(_is_independent, same))), None)
    for name in damaged:
        if partner is None or _is_independent(name):
            durable.publish(name, durable.chunks(sources[0][0]), check)
        else:
            durable.link(partner, name)
        if partner is None and not _is_independent(name):
            partner = name


def _is_independent(path: Path) -> bool:
    return names.role_of(path.name) in INDEPENDENT


def _copies_of(corrupt: Corrupt, valid: list[list[Path]]) -> list[list[Path]]:
    """The valid files with the state of a corrupt one: by its seal, its metadata, or its role."""
    known = _identities(corrupt.names[0])
    copies = [same for same in valid if known & _identities(same[0])]
    if copies or known:
        return copies
    twins = {twin for name in corrupt.names if (twin := _twin(name, valid))}
    return [same for same in valid if twins & set(same)]


def _identities(path: Path) -> set[Identity]:
    """What tells a state: the seal that closes a file; its run, step and moment."""
    found: set[Identity] = set()
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - format.SEAL_SIZE))
        seal = file.read(format.SEAL_SIZE)
        if seal.startswith(format.SEAL_PREFIX):
            found.add(("seal", seal.hex()))
    with contextlib.suppress(CheckpointError, KeyError, TypeError):
        meta = read_meta(path)
        found.add(("saved", str(meta["run"]["id"]), str(meta["step"]), str(meta["saved_at"])))
    return found


def _twin(damaged: Path, valid: list[list[Path]]) -> Path | None:
    """The file beside one that tells nothing any more which by its role holds the same state."""
    beside = [path for same in valid for path in same if path.parent == damaged.parent]
    beside.sort(key=lambda path: names.number_in(path.name) or 0)
    by_role = {names.role_of(path.name): path for path in beside}  # of a pool the newest
    match names.role_of(damaged.name):
        case Role.BEST:
            return by_role.get(Role.BEST_BACKUP)
        case Role.BEST_BACKUP:
            return by_role.get(Role.BEST)
        case Role.ROLLING_BACKUP:
            return by_role.get(Role.ROLLING)
        case Role.ROLLING:
            backup = by_role.get(Role.ROLLING_BACKUP)
            step = read_meta(backup)["step"] if backup else None
            return backup if step == names.number_in(damaged.name) else None
    return None


def _by_inode(paths: Iterable[Path]) -> list[list[Path]]:
    files: dict[tuple[int, int], list[Path]] = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            info = path.stat()
            files.setdefault((info.st_dev, info.st_ino), []).append(path)
    return list(files.values())
