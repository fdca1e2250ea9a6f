"""Repair one checkpoints/ folder: replace each corrupt file by a verified copy of its state.

The corrupt file is kept in corrupt_YYYYMMDD_HHMMSS/ and never deleted. Call `repair` and
`quarantine` only while no other process saves into the folder.

A file on disk can have several names (hard links). It is repaired once, under all of its names.
"""

import contextlib
import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from gpt2ckpt.checkpoint import format, names
from gpt2ckpt.checkpoint.archive_folders import ABANDONED, CORRUPT, archive_folders, unused_folder
from gpt2ckpt.checkpoint.event_sink import NO_EVENTS, EventSink
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.reading import blameless, check, misplacement, read_meta, seal_of, step_of
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.files import durable
from gpt2ckpt.files.links import inode_of

INDEPENDENT = (Role.ROLLING_BACKUP, Role.BEST_BACKUP)  # second copies with their own disk blocks
NOT_READABLE = (errno.EACCES, errno.EPERM)

File = list[Path]  # all names of one file on disk


@dataclass(frozen=True)
class Corrupt:
    """A damaged file and its damage."""

    names: File
    reason: str


@dataclass(frozen=True)
class Diagnosis:
    """The valid and the corrupt files of a folder."""

    valid: list[File] = field(default_factory=list)
    corrupt: list[Corrupt] = field(default_factory=list)


@dataclass(frozen=True)
class RepairResult:
    """The result of repairing a corrupt file.

    Attributes:
        corrupt: The corrupt file.
        source: The copy that replaces it; None without a copy.
        folder: The folder that it was moved to; None if it stays where it is.
    """

    corrupt: Corrupt
    source: Path | None
    folder: Path | None = None

    @property
    def message(self) -> str:
        """The result as text for the log."""
        files = ", ".join(name.name for name in self.corrupt.names)
        damaged = f"DAMAGED ON DISK: {files} ({self.corrupt.reason})"
        folder = self.folder.name if self.folder else ""
        if self.source is not None:
            return (
                f"{damaged}; repaired from {self.source.name}. The damaged file is kept in {folder}"
            )
        kept = f"is kept in {folder}" if folder else "stays where it is, and is not used"
        return f"{damaged}. No copy of that state is left; it {kept}"


# ---------------------------------------------------------------- finding corrupt files


def same_files(folder: Path) -> list[File]:
    """Return the checkpoints of a folder, including archived ones."""
    archived = [
        path for archive in archive_folders(folder, ABANDONED) for path in archive.iterdir()
    ]
    paths = [path for path in (*folder.iterdir(), *archived) if names.role_of(path.name)]
    files: dict[tuple[int, int], File] = {}
    for path in sorted(paths, key=lambda path: (path.parent != folder, path)):
        with contextlib.suppress(FileNotFoundError):
            files.setdefault(inode_of(path.stat()), []).append(path)
    return list(files.values())


def diagnose(folder: Path) -> Diagnosis:
    """Verify every checkpoint of a folder, including archived ones.

    Raises OSError if a file cannot be read for a reason that does not mean damage.
    """
    found = Diagnosis()
    for file in same_files(folder):
        try:
            check(file[0])
            found.valid.append(file)
        except CheckpointError as error:
            if reason := blameless(error):
                raise reason from error
            if file[0].exists():  # else a live run has deleted it in the meantime
                found.corrupt.append(Corrupt(file, str(error)))
    return found


def _is_valid(path: Path) -> bool | None:
    """Return whether a file is valid; None if this cannot be determined now.

    A file that this user may not open counts as invalid, because it obstructs saves.
    """
    try:
        check(path)
    except CheckpointError as error:
        reason = blameless(error)
        return False if reason is None or reason.errno in NOT_READABLE else None
    return True


# ---------------------------------------------------------------- repairing them


def repair(
    folder: Path,
    found: Diagnosis,
    when: datetime,
    *,
    moves: bool = False,
    events: EventSink = NO_EVENTS,
) -> list[RepairResult]:
    """Replace each corrupt file by a valid copy of its state.

    Afterwards, hard links share disk blocks again, and each second copy has blocks of its own.

    Args:
        folder: checkpoints/.
        found: The corrupt files, and the valid files to take copies from.
        when: The time in the name of the folder that corrupt files are moved to.
        moves: Whether corrupt files without a valid copy are moved there too.
        events: Records `checkpoint_corrupt` before a file is changed, and `checkpoint_repaired`.

    Raises:
        OSError, CheckpointError: The repair failed. Each name has the corrupt file or a valid copy.
    """
    archive = unused_folder(folder, CORRUPT, when)
    results = []
    for corrupt in found.corrupt:
        _report_corrupt(corrupt, events)
        sources = _copies_of(corrupt, found.valid)
        if not sources and not moves:
            results.append(RepairResult(corrupt, None))
            continue
        for name in corrupt.names:
            kept = archive / name.relative_to(folder)
            durable.make_directory(kept.parent)
            (durable.link if sources else durable.move)(name, kept)
        if not sources:
            results.append(RepairResult(corrupt, None, archive))
            continue
        _replace(corrupt.names, sources)
        source = sources[0][0]
        events.write(
            "checkpoint_repaired",
            step_of(corrupt.names[0]),
            files=[name.name for name in corrupt.names],
            source=source.name,
            kept_in=archive.name,
        )
        results.append(RepairResult(corrupt, source, archive))
    return results


def _report_corrupt(corrupt: Corrupt, events: EventSink) -> None:
    """Record a damaged file durably, before it is replaced or moved."""
    files = [name.name for name in corrupt.names]
    step = step_of(corrupt.names[0])
    events.write("checkpoint_corrupt", step, files=files, reason=corrupt.reason)
    events.sync()


def _replace(damaged: File, sources: list[File]) -> None:
    """Replace a damaged file under all of its names by the state of the valid files `sources`."""
    partner = next((file[0] for file in sources if not any(map(_is_independent, file))), None)
    for name in damaged:
        if partner is None or _is_independent(name):
            durable.publish(name, durable.chunks(sources[0][0]), check)
        else:
            durable.link(partner, name)
        if partner is None and not _is_independent(name):
            partner = name


def _is_independent(path: Path) -> bool:
    return names.role_of(path.name) in INDEPENDENT


def _copies_of(corrupt: Corrupt, valid: list[File]) -> list[File]:
    """Return the valid files that hold the state of a corrupt file, by seal, metadata or role."""
    known = _identities(corrupt.names[0])
    copies = [file for file in valid if known & _identities(file[0])]
    if copies or known:
        return copies
    twins = {twin for name in corrupt.names if (twin := _twin(name, valid))}
    return [file for file in valid if twins & set(file)]


def _identities(path: Path) -> set[tuple[str, ...]]:
    """Return the two identities of a state: the seal of its file; its run, step and time."""
    found: set[tuple[str, ...]] = set()
    with contextlib.suppress(CheckpointError):
        seal = seal_of(path)
        if seal.startswith(format.SEAL_PREFIX.decode()):
            found.add(("seal", seal))
    with contextlib.suppress(CheckpointError):
        meta = read_meta(path)
        if meta.has("run.id") and meta.has("step") and meta.has("saved_at"):
            found.add(("saved", meta.run.id, str(meta.step), meta.saved_at))
    return found


def _twin(damaged: Path, valid: list[File]) -> Path | None:
    """Return the file in the same folder whose role means the same state; None without one.

    For a file that is damaged so much that nothing else identifies its state.
    """
    beside = [path for file in valid for path in file if path.parent == damaged.parent]
    beside.sort(key=lambda path: names.number_in(path.name) or 0)
    by_role = {names.role_of(path.name): path for path in beside}  # the newest of each role
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


# ---------------------------------------------------------------- files that were found by reading


def quarantine(
    folder: Path,
    suspects: Mapping[Path, str],
    when: datetime,
    run: str | None = None,
    events: EventSink = NO_EVENTS,
) -> list[str]:
    """Replace unusable files by verified copies, or move them away.

    Otherwise the next saves would replace valid copies by them. A valid file under the name of a
    different file, or of a different run, loses only that name. A usable file is not changed.

    Args:
        folder: checkpoints/.
        suspects: The files with the reason for each; files outside the folder are not changed.
        when: The time in the name of the folder that they are moved to.
        run: The id of the run, if known.
        events: Records `checkpoint_corrupt` before a file is changed, and `checkpoint_repaired`.

    Returns:
        A message for each file that was replaced or moved.

    Raises:
        OSError, CheckpointError: The same as for `repair`.
    """
    corrupt: dict[Path, str] = {}
    valid: list[Path] = []
    for suspect, reason in suspects.items():
        path = _inside(folder, suspect)
        if path is not None and path.is_file():
            is_valid = _is_valid(path)
            if is_valid:
                valid.append(path)
            elif is_valid is False:
                corrupt[path] = reason
    messages = [result.message for result in _repair_or_move(folder, corrupt, when, events)]
    archive = unused_folder(folder, CORRUPT, when)
    for path in valid:
        if mismatch := misplacement(path, run):
            _report_corrupt(Corrupt([path], mismatch), events)
            durable.make_directory(archive)
            durable.move(path, archive / path.name)
            messages.append(f"{mismatch}; it is kept in {archive.name}")
    return messages


def _inside(folder: Path, path: Path) -> Path | None:
    """Return a path relative to the spelling of `folder`; None for a path outside `folder`."""
    place, top = path.parent.resolve(), folder.resolve()
    return folder / place.relative_to(top) / path.name if place.is_relative_to(top) else None


def _repair_or_move(
    folder: Path, corrupt: Mapping[Path, str], when: datetime, events: EventSink
) -> list[RepairResult]:
    """Replace corrupt files, or move them away if no copy can be written."""
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
    """Return the corrupt files with all of their names, and the verified copies of their states."""
    files = same_files(folder)
    corrupt = [
        Corrupt(file, next(suspects[path] for path in file if path in suspects))
        for file in files
        if suspects.keys() & set(file)
    ]
    known = {path for item in corrupt for path in item.names}
    others = [file for file in files if not known & set(file)]
    copies = [file for item in corrupt for file in _copies_of(item, others)]
    return Diagnosis([file for file in copies if _is_valid(file[0])], corrupt)
