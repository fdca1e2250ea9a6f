"""Who holds a run directory, as its run.lock says, and whether that process lives."""

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path

SIZE = 512  # bytes of a record: one in place of another needs no new space on the disk


class Verdict(Enum):
    """What can be said at once of the process that a record names."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"  # on another machine: it lives if its record changes


@dataclass(frozen=True)
class Owner:
    """A process: `boot` and `pids` name the kernel and the pid namespace in which `pid` counts.

    `birth` is when it began, in clock ticks after that boot: another process may get its number.
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
    """A record for this process."""
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
    """A record of `SIZE` bytes; another `beat` makes another record."""
    return json.dumps({**asdict(owner), "beat": beat}).encode().ljust(SIZE - 1) + b"\n"


def decode(content: bytes) -> Owner | None:
    """The owner in a record; None for anything else."""
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
    """Whether `owner` lives, asked by the process `here`.

    `kernel_lock_is_free`: a kernel lock on the directory was to be had, which no living process of
    the same kernel would have left. Between machines neither such locks nor clocks can be trusted.
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
    """When a process began, in clock ticks after the boot; None if there is none.

    Source: proc(5), field 22 of /proc/PID/stat; the name before it may hold blanks and brackets.
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
