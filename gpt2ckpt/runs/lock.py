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
# What a process of a run opens by name and writes to: a link would lead the writes elsewhere.
WRITTEN = (LOCK_NAME, "metrics.jsonl", ".metrics.jsonl.tmp", "train.log", ".hydra")


class RunLock:
    """An exclusive flock(2) on a run directory itself; run.lock in it names the owner.

    The file is a label: it stays when the process ends, and deleting it frees nothing.
    """

    def __init__(self, directory: Path) -> None:
        """Take the lock. Raises InputError naming the living owner; nothing is changed then.

        The same for a directory in which a file that a run writes to is a link.
        """
        refuse_links(directory)
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise InputError(_refusal(directory)) from error
        started = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        try:
            (directory / LOCK_NAME).write_text(json.dumps(owner))
        except OSError:
            self.release()
            raise

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
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def refuse_if_locked(directory: Path) -> None:
    """Raise InputError naming the living process that trains in `directory`, if one does."""
    if is_locked(directory):
        raise InputError(_refusal(directory))


def refuse_links(directory: Path) -> None:
    """Raise InputError if a file that a run writes to is a symbolic link, wherever it leads."""
    for name in WRITTEN:
        if (directory / name).is_symlink():
            raise InputError(
                f"{directory / name} is a symbolic link, and a run writes to no file of another "
                "place: put the file itself there, or remove the link"
            )


def _refusal(directory: Path) -> str:
    try:
        fields = json.loads((directory / LOCK_NAME).read_text())
        owner = f"process {fields['pid']} on {fields['host']} since {fields['started']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        owner = "another process"
    return f"{directory} is being trained by {owner}: wait for it or stop it"
