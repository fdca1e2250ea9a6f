"""The lock of a live run: held by the operating system, so that it dies with its process."""

import fcntl
import json
import os
import socket
from datetime import datetime
from pathlib import Path
from types import TracebackType

from gpt2ckpt.errors import InputError

LOCK_NAME = "run.lock"


class RunLock:
    """An exclusive flock(2) on run.lock in a run directory, with its owner's name inside.

    The file stays when the process ends: only a held lock means that a run is alive.
    """

    def __init__(self, directory: Path) -> None:
        """Take the lock. Raises InputError naming the living owner; nothing is changed then."""
        self._descriptor = os.open(
            directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _named(os.read(self._descriptor, 4096))
            os.close(self._descriptor)
            raise InputError(
                f"{directory} is being trained by {owner}: wait for it or stop it"
            ) from error
        started = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        fields = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(fields).encode(), 0)

    def release(self) -> None:
        """Give the lock back; more than once is no error."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def is_locked(directory: Path) -> bool:
    """Whether a living process trains in `directory`; changes nothing there."""
    return _owner_of(directory) is not None


def refuse_if_locked(directory: Path) -> None:
    """Raise InputError naming the living process that trains in `directory`, if one does."""
    owner = _owner_of(directory)
    if owner is not None:
        raise InputError(f"{directory} is being trained by {owner}: wait for it or stop it")


def _owner_of(directory: Path) -> str | None:
    try:
        descriptor = os.open(directory / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _named(os.read(descriptor, 4096))
    finally:
        os.close(descriptor)
    return None


def _named(owner: bytes) -> str:
    try:
        fields = json.loads(owner)
        return f"process {fields['pid']} on {fields['host']} since {fields['started']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
