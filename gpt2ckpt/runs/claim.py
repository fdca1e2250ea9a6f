"""Claiming a directory for a new run, so that no two runs ever share one."""

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
    """A directory that this process alone may train in; `notice` is for the user, if not empty."""

    directory: Path
    lock: RunLock
    notice: str = ""


def claim(wanted: Path, now: datetime, *, is_given: bool) -> Claim:
    """Claim `wanted` for a new run.

    A name that the user gave (`is_given`) is taken as it is unless it holds checkpoints or lives:
    then it is left untouched and the run gets `wanted_run_YYYYMMDD_HHMMSS`. A name that ends in a
    time stamp of ours moves on to the next free second.

    Raises InputError if the directory cannot be made.
    """
    with _making("run", wanted):
        if not is_given:
            return _claim_stamped(claim_base(wanted), now)
        if not (holds_run(wanted) or is_locked(wanted)):
            wanted.mkdir(parents=True, exist_ok=True)
            try:
                lock = RunLock(wanted)
            except InputError:
                pass  # another start was faster: it is that one's now
            else:
                if not holds_run(wanted):  # that one may have ended since
                    return Claim(wanted, lock)
                lock.release()
        made = _claim_stamped(wanted.with_name(f"{wanted.name}_run"), now)
        return Claim(
            made.directory, made.lock, protection_notice(wanted, made.directory, "hydra.run.dir")
        )


def reclaim(wanted: Path) -> Claim:
    """Claim `wanted` itself. Raises InputError if it lives or cannot be made."""
    with _making("run", wanted):
        wanted.mkdir(parents=True, exist_ok=True)
        return Claim(wanted, RunLock(wanted))


def claim_sweep(wanted: Path, *, is_given: bool, is_continued: bool) -> Path:
    """The folder of a sweep: `wanted`, or of a new one beside it where that was given and is taken.

    Raises InputError if it cannot be made.
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
    """Keep new sweeps out of the folder until this process ends; false if this one is to keep out.

    Those that go on in it (`shared`) may be several, and are never kept out: they find each other's
    jobs.
    """
    descriptor = os.open(sweep / JOBS, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    state = try_lock(descriptor, shared=shared)
    if state is not Lock.TAKEN:
        return shared or state is Lock.UNSUPPORTED
    return shared or not holds_sweep(sweep)  # one may have ended since we looked


def claim_base(stamped: Path) -> Path:
    """`outputs/gpt2_run` for `outputs/gpt2_run_20251106_143022`; other names as they are."""
    match = STAMPED.fullmatch(stamped.name)
    return stamped.with_name(match["base"]) if match else stamped


def claim_name(base: Path, now: datetime) -> Path:
    """Create `base_YYYYMMDD_HHMMSS`, moving on to the next free second. Raises OSError."""
    base.parent.mkdir(parents=True, exist_ok=True)
    while True:
        directory = base.with_name(f"{base.name}_{now:{STAMP}}")
        try:
            directory.mkdir()  # atomic: of any number of starts one gets it
        except FileExistsError:
            now += timedelta(seconds=1)
        else:
            return directory


def holds_run(directory: Path) -> bool:
    """Whether there is any .pt file in the directory's checkpoints/, or a history of steps."""
    history = directory / HISTORY
    has_history = history.is_file() and history.stat().st_size > 0
    return has_history or holds_checkpoints(directory)


def holds_sweep(directory: Path) -> bool:
    """Whether any folder in `directory` holds a run."""
    return directory.is_dir() and any(holds_run(job) for job in directory.iterdir())


def holds_checkpoints(directory: Path) -> bool:
    """Whether there is any .pt file in the directory's checkpoints/, at any depth.

    Raises InputError where that cannot be known: it may be full of them.
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
        raise InputError(
            f"the {what} directory {wanted} cannot be made ({error.strerror}): give another with "
            f"hydra.{what}.dir=DIR"
        ) from error


def _claim_stamped(base: Path, now: datetime) -> Claim:
    directory = claim_name(base, now)
    return Claim(directory, RunLock(directory))


def protection_notice(wanted: Path, made: Path, key: str) -> str:
    """What to tell whose directory, given by `key`, was taken already."""
    from gpt2ckpt.config.compose import as_typed  # here: a listing needs no Hydra

    given = as_typed(key, str(wanted))
    return (
        "CHECKPOINT DIRECTORY PROTECTION\n"
        f"  {wanted} already holds a run; nothing in it is touched.\n"
        f"  This run trains in {made}.\n"
        f"  To go on with the old one instead: +resume=latest {given}"
    )
