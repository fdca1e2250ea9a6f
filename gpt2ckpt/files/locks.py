"""Kernel locks on open files and directories (flock(2)); they end with the process."""

import fcntl
from enum import Enum


class Lock(Enum):
    """What became of an attempt to lock."""

    TAKEN = "taken"
    HELD = "another process holds it"
    UNSUPPORTED = "the file system has no such locks"


def try_lock(descriptor: int, *, shared: bool = False, wait: bool = False) -> Lock:
    """Lock an open file or directory until `descriptor` is closed; never raises.

    Any number of processes can hold a `shared` lock at a time, if none holds another one. With
    `wait`, a lock that another process holds is waited for.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.HELD
    except OSError:
        return Lock.UNSUPPORTED
    return Lock.TAKEN
