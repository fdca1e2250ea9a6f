"""Kernel locks on open files and directories (flock(2)), released when the process ends."""

import fcntl
from enum import Enum


class Lock(Enum):
    """Result of an attempt to lock."""

    TAKEN = "taken"
    HELD = "held by another process"
    UNSUPPORTED = "not supported by the file system"


def try_lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> Lock:
    """Lock an open file or directory until `descriptor` is closed. Never raises an exception.

    Args:
        descriptor: The descriptor of the open file or directory.
        shared: Take a shared lock, which several processes can hold at the same time.
        wait: Wait until another process releases its lock, instead of returning HELD.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.HELD
    except OSError:
        return Lock.UNSUPPORTED
    return Lock.TAKEN
