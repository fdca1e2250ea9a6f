"""Claim a directory for a new run or sweep, so that no two runs share a directory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn

from gpt2ckpt.errors import InputError
from gpt2ckpt.files.locks import Lock, try_lock
from gpt2ckpt.files.permissions import require_access, unreadable_message
from gpt2ckpt.runs.layout import CHECKPOINTS, HISTORY, JOBS, STAMP, STAMPED
from gpt2ckpt.runs.lock import RunLock, is_locked


@dataclass(frozen=True)
class Claim:
    """A directory that only this process may train in; `notice` is printed unless it is empty."""

    directory: Path
    lock: RunLock
    notice: str = ""


def claim(wanted: Path, now: datetime, *, is_given: bool) -> Claim:
    """Claim a directory for a new run.

    Args:
        wanted: The directory; a default name ends in a time stamp.
        now: The time stamp of a new name, or the next free second after it.
        is_given: Whether the user named `wanted`. That directory is then claimed under this name,
            unless it already holds a run or is locked: it is left untouched in that case, and the
            new run trains in `wanted_run_YYYYMMDD_HHMMSS`.

    Raises:
        InputError: The directory cannot be created.
    """
    with _making("run", wanted):
        if not is_given:
            return _claim_stamped(claim_base(wanted), now)
        if not (holds_run(wanted) or is_locked(wanted)):
            wanted.mkdir(parents=True, exist_ok=True)
            try:
                lock = RunLock(wanted)
            except InputError:
                pass  # another process was faster
            else:
                if not holds_run(wanted):  # that process may have ended in the meantime
                    return Claim(wanted, lock)
                lock.release()
        made = _claim_stamped(wanted.with_name(f"{wanted.name}_run"), now)
        return Claim(
            made.directory, made.lock, protection_notice(wanted, made.directory, "hydra.run.dir")
        )


def reclaim(wanted: Path) -> Claim:
    """Claim `wanted` itself. Raises InputError if it is locked or cannot be created."""
    with _making("run", wanted):
        wanted.mkdir(parents=True, exist_ok=True)
        return Claim(wanted, RunLock(wanted))


def claim_sweep(wanted: Path, *, is_given: bool, is_continued: bool) -> Path:
    """Return the folder of a sweep: `wanted`, or a new folder beside it if `wanted` is taken.

    Args:
        wanted: The folder, with a time stamp if it is a default name.
        is_given: Whether the user named `wanted`.
        is_continued: Whether the sweep resumes in `wanted`, beside other launches of it.

    Raises:
        InputError: The folder cannot be created.
    """
    with _making("sweep", wanted):
        if not is_given:
            return claim_name(claim_base(wanted), datetime.now())
        is_taken = not is_continued and holds_sweep(wanted)
        wanted.mkdir(parents=True, exist_ok=True)
        if is_taken or not _hold(wanted, shared=is_continued):
            return claim_name(wanted.with_name(f"{wanted.name}_sweep"), datetime.now())
    return wanted


def _hold(sweep: Path, *, shared: bool) -> bool:
    """Lock a sweep's folder against new sweeps until this process ends; return whether it is free.

    Processes that resume the sweep share the lock and are never refused: each of them skips the
    jobs that the others train.
    """
    descriptor = os.open(sweep / JOBS, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    state = try_lock(descriptor, shared=shared)
    if state is not Lock.TAKEN:
        return shared or state is Lock.UNSUPPORTED
    return shared or not holds_sweep(sweep)  # a different sweep may have ended there


def claim_base(stamped: Path) -> Path:
    """Return a name without its time stamp: gpt2_run for gpt2_run_20251106_143022."""
    match = STAMPED.fullmatch(stamped.name)
    return stamped.with_name(match["base"]) if match else stamped


def claim_name(base: Path, now: datetime) -> Path:
    """Create and return `base_YYYYMMDD_HHMMSS` for the next free second. Raises OSError."""
    base.parent.mkdir(parents=True, exist_ok=True)
    while True:
        directory = base.with_name(f"{base.name}_{now:{STAMP}}")
        try:
            directory.mkdir()  # atomic: only one of several processes creates it
        except FileExistsError:
            now += timedelta(seconds=1)
        else:
            return directory


def holds_run(directory: Path) -> bool:
    """Return whether a directory holds a .pt file in checkpoints/, or a line in metrics.jsonl."""
    history = directory / HISTORY
    has_history = history.is_file() and history.stat().st_size > 0
    return has_history or holds_checkpoints(directory)


def holds_sweep(directory: Path) -> bool:
    """Return whether any folder in `directory` holds a run."""
    return directory.is_dir() and any(holds_run(job) for job in directory.iterdir())


def holds_checkpoints(directory: Path) -> bool:
    """Return whether a directory holds a .pt file in checkpoints/, at any depth.

    Raises InputError if the folder cannot be read: it may hold checkpoints.
    """
    folder = directory / CHECKPOINTS

    def refuse(error: OSError) -> NoReturn:
        raise unreadable_message(error.filename or folder, error) from error

    require_access(directory)
    if not os.path.lexists(folder):
        return False
    walk = os.walk(folder, onerror=refuse)
    return any(name.endswith(".pt") for _, _, files in walk for name in files)


@contextmanager
def _making(what: str, wanted: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{wanted} is a file" if wanted.is_file() else error.strerror
        raise InputError(
            f"the {what} directory {wanted} cannot be created ({reason}): pass a different "
            f"one with hydra.{what}.dir=DIR"
        ) from error


def _claim_stamped(base: Path, now: datetime) -> Claim:
    directory = claim_name(base, now)
    return Claim(directory, RunLock(directory))


def protection_notice(wanted: Path, made: Path, key: str) -> str:
    """Return the notice for a user whose directory, set by `key`, already holds a run."""
    from gpt2ckpt.config.compose import as_typed  # imports Hydra, which a listing does without

    given = as_typed(key, str(wanted))
    return (
        "CHECKPOINT DIRECTORY PROTECTION\n"
        f"  {wanted} already holds a run, and is left untouched.\n"
        f"  This run trains in {made}.\n"
        f"  To resume the old run instead: +resume=latest {given}"
    )
