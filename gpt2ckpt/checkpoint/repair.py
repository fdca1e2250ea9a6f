"""Mending one checkpoints/ folder: a corrupt file is replaced by a verified copy of its state.

The corrupt file is kept under corrupt_YYYYMMDD_HHMMSS/, never deleted. Call `repair` and
`quarantine` only while no other process saves into the folder.
"""

import contextlib
import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from gpt2ckpt.checkpoint import format, names
from gpt2ckpt.checkpoint.archive_folders import ABANDONED, CORRUPT, archive_folders, unused_folder
from gpt2ckpt.checkpoint.event_sink import NO_EVENTS, EventSink
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.reading import blameless, check, read_meta
from gpt2ckpt.checkpoint.store import misplacement, step_of
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.files import durable
from gpt2ckpt.files.links import inode_of

INDEPENDENT = (Role.ROLLING_BACKUP, Role.BEST_BACKUP)  # second copies, in blocks of their own

CLOSED = (errno.EACCES, errno.EPERM)

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
class RepairResult:
    """What was done about a corrupt file: replaced by its copy `source`, if there is one, and moved
    to `aside`; without both it stays where it is."""

    corrupt: Corrupt
    source: Path | None
    aside: Path | None = None

    @property
    def message(self) -> str:
        """What the user has to know."""
        files = ", ".join(name.name for name in self.corrupt.names)
        damaged = f"DAMAGED ON DISK: {files} ({self.corrupt.reason})"
        aside = self.aside.name if self.aside else ""
        if self.source is not None:
            return (
                f"{damaged}; repaired from {self.source.name}. The damaged file is kept in {aside}"
            )
        kept = f"is kept in {aside}" if aside else "stays where it is, and is not used"
        return f"{damaged}. No copy of that state is left; it {kept}"


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
    abandoned = [path for aside in archive_folders(folder, ABANDONED) for path in aside.iterdir()]
    paths = [path for path in (*folder.iterdir(), *abandoned) if names.role_of(path.name)]
    return _by_inode(sorted(paths, key=lambda path: (path.parent != folder, path)))


def quarantine(
    folder: Path,
    suspects: Mapping[Path, str],
    when: datetime,
    run: str | None = None,
    events: EventSink = NO_EVENTS,
) -> list[str]:
    """Replace files in `folder` that cannot be used by verified copies, or move them away.

    The next saves would let them take the place of valid copies, and these would be lost. A whole
    file in the place of another one, or of another run than `run`, loses that name alone; one that
    can be used after all is left alone.

    Args:
        folder: checkpoints/.
        suspects: what is wrong with each file; those outside the folder are left alone.
        when: names the folder that they are moved to.
        run: the id of the run, if it is known.
        events: gets `checkpoint_corrupt` before a file is touched, and `checkpoint_repaired`.

    Returns:
        A sentence for each file. Raises OSError or CheckpointError.
    """
    corrupt: dict[Path, str] = {}
    whole: list[Path] = []
    for named, reason in suspects.items():
        path = _inside(folder, named)
        if path is not None and path.is_file():
            is_valid = _is_valid(path)
            if is_valid:
                whole.append(path)
            elif is_valid is False:
                corrupt[path] = reason
    sentences = [mended.message for mended in _repair_or_move(folder, corrupt, when, events)]
    aside = unused_folder(folder, CORRUPT, when)
    for path in whole:
        if contradiction := misplacement(path, run):
            _report_corrupt(Corrupt([path], contradiction), events)
            durable.make_directory(aside)
            durable.move(path, aside / path.name)
            sentences.append(f"{contradiction}; it is kept in {aside.name}")
    return sentences


def _inside(folder: Path, path: Path) -> Path | None:
    """A path as one below `folder`, however it was spelled; None if it leads elsewhere."""
    place, top = path.parent.resolve(), folder.resolve()
    return folder / place.relative_to(top) / path.name if place.is_relative_to(top) else None


def _repair_or_move(
    folder: Path, corrupt: Mapping[Path, str], when: datetime, events: EventSink
) -> list[RepairResult]:
    """Replace corrupt files; on a disk that takes no copy, move them away."""
    if not corrupt:
        return []
    found = _diagnose_some(folder, corrupt)
    try:
        return repair(folder, found, when, moves=True, events=events)
    except (OSError, CheckpointError):
        left = [
            Corrupt(names, item.reason)
            for item in found.corrupt
            if (names := [name for name in item.names if name.exists() and not _is_valid(name)])
        ]
        return repair(folder, Diagnosis(corrupt=left), when, moves=True, events=events)


def _diagnose_some(folder: Path, suspects: Mapping[Path, str]) -> Diagnosis:
    """The corrupt files by all of their names, and the verified copies of what they held."""
    files = same_files(folder)
    corrupt = [
        Corrupt(same, next(suspects[path] for path in same if path in suspects))
        for same in files
        if suspects.keys() & set(same)
    ]
    known = {path for item in corrupt for path in item.names}
    others = [same for same in files if not known & set(same)]
    copies = [same for item in corrupt for same in _copies_of(item, others)]
    return Diagnosis([same for same in copies if _is_valid(same[0])], corrupt)


def _is_valid(path: Path) -> bool | None:
    """Whether a file can be used; None if that cannot be told now.

    One that this user may not open is in the way of saves as a damaged one is.
    """
    try:
        check(path)
    except CheckpointError as error:
        reason = blameless(error)
        return False if reason is None or reason.errno in CLOSED else None
    return True


def repair(
    folder: Path,
    found: Diagnosis,
    when: datetime,
    *,
    moves: bool = False,
    events: EventSink = NO_EVENTS,
) -> list[RepairResult]:
    """Replace every corrupt file of which a valid copy is left; with `moves`, move the others away.

    Every name that is meant to share blocks shares them again, and every second copy is in blocks
    of its own again. Raises OSError or CheckpointError; a name then stands for what it stood for,
    or for the valid copy.
    """
    aside = unused_folder(folder, CORRUPT, when)
    mended = []
    for corrupt in found.corrupt:
        _report_corrupt(corrupt, events)
        sources = _copies_of(corrupt, found.valid)
        if not sources and not moves:
            mended.append(RepairResult(corrupt, None))
            continue
        if not sources:
            for name in corrupt.names:
                kept = aside / name.relative_to(folder)
                durable.make_directory(kept.parent)
                durable.move(name, kept)
            mended.append(RepairResult(corrupt, None, aside))
            continue
        for name in corrupt.names:
            kept = aside / name.relative_to(folder)
            durable.make_directory(kept.parent)
            durable.link(name, kept)
        _replace(corrupt.names, sources)
        events.write(
            "checkpoint_repaired",
            step_of(corrupt.names[0]),
            files=[name.name for name in corrupt.names],
            source=sources[0][0].name,
            kept_in=aside.name,
        )
        mended.append(RepairResult(corrupt, sources[0][0], aside))
    return mended


def _report_corrupt(corrupt: Corrupt, events: EventSink) -> None:
    """Record a damaged file durably, before it is replaced or moved."""
    files = [name.name for name in corrupt.names]
    step = step_of(corrupt.names[0])
    events.write("checkpoint_corrupt", step, files=files, reason=corrupt.reason)
    events.sync()


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
    with contextlib.suppress(CheckpointError):
        meta = read_meta(path)
        if meta.has("run.id") and meta.has("step") and meta.has("saved_at"):
            found.add(("saved", meta.run.id, str(meta.step), meta.saved_at))
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
            step = read_meta(backup).step if backup else None
            return backup if step == names.number_in(damaged.name) else None
    return None


def _by_inode(paths: Iterable[Path]) -> list[list[Path]]:
    files: dict[tuple[int, int], list[Path]] = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            info = path.stat()
            files.setdefault(inode_of(info), []).append(path)
    return list(files.values())
