"""The owner of a run directory, as run.lock records it, and whether that process is alive."""

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path

SIZE = 512  # bytes of a record, always the same: rewriting one needs no new disk space


class Verdict(Enum):
    """Whether the process of a lock record is alive, as far as this is known at once."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"  # on a different machine: alive if its record changes


@dataclass(frozen=True)
class Owner:
    """A process that holds a run directory.

    Attributes:
        pid: Its number, in the pid namespace `pids` of the kernel that booted as `boot`.
        host: Its machine.
        started: When it took the lock, as text.
        birth: When it started, in clock ticks after boot: a later process can have the same number.
        token: Random text that identifies the lock.
    """

    pid: int
    host: str
    started: str
    boot: str = ""
    pids: str = ""
    birth: int = 0
    token: str = ""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.started}"


def this_process() -> Owner:
    """Return a record of this process."""
    return Owner(
        os.getpid(),
        socket.gethostname(),
        f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        boot=_text(Path("/proc/sys/kernel/random/boot_id")),
        pids=_link(Path("/proc/self/ns/pid")),
        birth=birth_of(os.getpid()) or 0,
        token=secrets.token_hex(8),
    )


def encode(owner: Owner, beat: int) -> bytes:
    """Return a record of `SIZE` bytes, which differs for each `beat`."""
    return json.dumps({**asdict(owner), "beat": beat}).encode().ljust(SIZE - 1) + b"\n"


def decode(content: bytes) -> Owner | None:
    """Return the owner that a lock record names; None if `content` is not a lock record."""
    try:
        fields = json.loads(content)
        return Owner(
            pid=int(fields["pid"]),
            host=str(fields["host"]),
            started=str(fields["started"]),
            boot=str(fields.get("boot", "")),
            pids=str(fields.get("pids", "")),
            birth=int(fields.get("birth", 0)),
            token=str(fields.get("token", "")),
        )
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None


def judge(owner: Owner | None, here: Owner, *, kernel_lock_is_free: bool) -> Verdict:
    """Return whether `owner` is alive, as far as the process `here` knows without waiting.

    Args:
        owner: The process in the lock record; None for a damaged record.
        here: This process.
        kernel_lock_is_free: Whether the kernel lock of the directory could be taken, so that no
            living process of the same kernel holds it. Between machines, neither locks nor clocks
            are reliable.
    """
    if owner is None:
        return Verdict.UNKNOWN
    same_kernel = owner.boot == here.boot if owner.boot else owner.host == here.host
    if not same_kernel:
        return Verdict.UNKNOWN
    if kernel_lock_is_free:
        return Verdict.DEAD
    if owner.pids != here.pids:
        return Verdict.UNKNOWN
    return Verdict.ALIVE if birth_of(owner.pid) == owner.birth else Verdict.DEAD


def birth_of(pid: int) -> int | None:
    """Return when a process started, in clock ticks after boot; None if it does not exist.

    Source: proc(5), field 22 of /proc/PID/stat. The process name in field 2 can contain blanks and
    brackets.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""
