"""Which rank this process is. Imports no torch: a refusal costs no second of waiting."""

from collections.abc import Mapping
from dataclasses import dataclass

GIVEN_BY_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """This process among those of a launch by torchrun.

    `local_rank` counts on one machine. `attempt` is how often torchrun has started the group anew.
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
    """What torchrun says in the environment; None for a process that was started by itself."""
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
