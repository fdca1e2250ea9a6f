"""Reads the rank of this process, without importing torch, which takes seconds."""

from collections.abc import Mapping
from dataclasses import dataclass

GIVEN_BY_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """The rank of this process in a launch by torchrun.

    Attributes:
        rank: Number of the process among all processes.
        local_rank: Number of the process on its machine.
        size: Number of processes.
        address: Host of the store.
        port: Port of the store.
        attempt: Number of restarts by torchrun so far.
        launcher_has_store: Whether torchrun serves the store; otherwise rank 0 does.
    """

    rank: int
    local_rank: int
    size: int
    address: str
    port: int
    attempt: int = 0
    launcher_has_store: bool = False

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def read_ranks(environment: Mapping[str, str]) -> Ranks | None:
    """Return the rank from torchrun's environment variables; None without torchrun."""
    if not all(environment.get(key) for key in GIVEN_BY_LAUNCHER):
        return None
    return Ranks(
        rank=int(environment["RANK"]),
        local_rank=int(environment["LOCAL_RANK"]),
        size=int(environment["WORLD_SIZE"]),
        address=environment["MASTER_ADDR"],
        port=int(environment["MASTER_PORT"]),
        attempt=int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")),
        launcher_has_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )
