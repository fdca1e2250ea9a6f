"""Communication between the ranks of one run.

Before training, the ranks exchange short texts through torchrun's TCPStore. The store needs no
process group, and a rank that waits for a key of the store handles signals. During training, the
ranks use collectives: gloo for numbers on the CPU, NCCL for gradients on GPUs.

The first rank that ends, for whatever reason, writes an exit report to the store. The waiting ranks
read the report and end with the same exit code. Only the rank that detected the error prints an
error message.
"""

import contextlib
import json
import os
import re
import time
from typing import TYPE_CHECKING, Any, TypeAlias

from gpt2ckpt.config.options import PluginError
from gpt2ckpt.errors import UserError
from gpt2ckpt.parallel.ranks import Ranks

if TYPE_CHECKING:
    import torch

POLL = 0.05  # seconds between two reads of the store
EXIT_REPORT = "end"
DIRECTORY = "directory"


class RankLost(UserError):
    """A different rank has ended, so collectives are no longer possible."""


class SingleProcess:
    """The process group of a process that was started without torchrun.

    The class has the interface of DistributedGroup with one rank: collectives return their
    arguments, and methods that publish to other ranks do nothing.
    """

    rank, local_rank, size, is_first = 0, 0, 1, True

    def publish_plan(self, plan: dict[str, Any]) -> None:
        """Do nothing."""

    def publish_directory(self, directory: str) -> None:
        """Do nothing."""

    def directory_of_first_attempt(self) -> str | None:
        """Return None: no launcher restarts this process."""
        return None

    def join(self, device: "torch.device") -> None:
        """Do nothing."""

    def all_reduce_max(self, numbers: list[int]) -> list[int]:
        return numbers

    def all_reduce_mean(self, number: float) -> float:
        return number

    def broadcast(self, text: str) -> str:
        return text

    def all_gather(self, rows: "torch.Tensor") -> "torch.Tensor":
        """Return `rows` with a first dimension of size 1."""
        return rows.unsqueeze(0)

    def explain_error(self, error: BaseException) -> BaseException:
        return error


class DistributedGroup:
    """The process group of a run that torchrun started, as seen by one rank.

    Life cycle: the first rank calls `publish_plan` and `publish_directory`; the other ranks call
    `receive_plan`, `confirm_plan` and `receive_directory`. Then all ranks call `join`, and after
    that the collectives, in the same order on all ranks. At its end, each rank calls `report_exit`.
    If a rank waits and a different rank ends, the waiting rank raises SystemExit.

    Attributes:
        rank: Number of this rank among all ranks.
        local_rank: Number of this rank on its machine.
        size: Number of ranks.
        is_first: Whether this is rank 0, the only one that writes files and prints.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.rank, self.local_rank, self.size = ranks.rank, ranks.local_rank, ranks.size
        self.is_first = ranks.is_first
        self._launcher = os.getppid()
        self._launch: Any = None
        self._attempt: Any = None

    # ------------------------------------------------ the store, before and after training

    def publish_plan(self, plan: dict[str, Any]) -> None:
        """First rank: publish the plan, and wait until every rank has confirmed it."""
        self._attempt_store.set("plan", json.dumps(plan))
        for rank in range(1, self.size):
            self._wait_for(f"ready/{rank}")

    def receive_plan(self) -> dict[str, Any]:
        """Other ranks: wait for the plan and return it.

        Raises:
            SystemExit: A rank has ended; the exit code is that of this rank.
        """
        plan: dict[str, Any] = json.loads(self._wait_for("plan"))
        return plan

    def confirm_plan(self) -> None:
        """Other ranks: confirm that this rank can follow the plan."""
        self._attempt_store.set(f"ready/{self.rank}", "")

    def publish_directory(self, directory: str) -> None:
        """First rank: publish the claimed run directory, also for later attempts of the launch."""
        self._store.set(DIRECTORY, directory)
        self._attempt_store.set("go", directory)

    def receive_directory(self) -> str:
        """Other ranks: wait for the claimed run directory and return it."""
        return self._wait_for("go")

    def directory_of_first_attempt(self) -> str | None:
        """Return the directory that an earlier attempt of this launch claimed, if any."""
        if self._ranks.attempt == 0 or not self._store.check([DIRECTORY]):
            return None
        return str(self._store.get(DIRECTORY).decode())

    def report_exit(self, code: int, reason: str = "") -> int | None:
        """Report that this rank ends.

        Args:
            code: The exit code of this rank.
            reason: The error, for the messages of other ranks.

        Returns:
            None if no rank has reported before; else the exit code in the first report.
        """
        report = json.dumps({"rank": self.rank, "code": code, "reason": reason})
        try:
            first = json.loads(self._attempt_store.compare_set(EXIT_REPORT, "", report).decode())
        except RuntimeError:
            return None  # the launcher and its store have ended
        return None if first["rank"] == self.rank else int(first["code"])

    def wait_for_first_rank(self, code: int) -> int:
        """Other ranks: wait until the first rank has saved, and return its exit code.

        When a rank ends with an exit code other than 0, torchrun ends all ranks. Therefore, no rank
        may end before the last save. If the launcher has ended, return `code`.
        """
        try:
            while not (report := self._exit_report()):
                time.sleep(POLL)
        except RuntimeError:
            return code
        return int(report["code"])

    def explain_error(self, error: BaseException) -> BaseException:
        """Return `error`, or RankLost with the reason if `error` is a failed communication."""
        cause = error.__cause__ if isinstance(error, PluginError) and error.__cause__ else error
        if not _is_of_communication(cause):
            return error
        report = None
        with contextlib.suppress(RuntimeError):
            report = self._exit_report()
        if report and report["rank"] != self.rank and report["reason"]:
            return RankLost(f"rank {report['rank']}: {report['reason']}")
        detail = re.sub(r"^\[\S+\] ", "", str(cause).splitlines()[0]).partition(". ")[0]
        return RankLost(
            f"another rank has ended or cannot be reached ({detail}): resume with +resume=latest"
        )

    def _wait_for(self, key: str) -> str:
        """Wait until `key` is set, and return its value. Raises SystemExit if a rank ends first."""
        while not self._attempt_store.check([key]):
            if report := self._exit_report():
                raise SystemExit(report["code"])
            time.sleep(POLL)
        return str(self._attempt_store.get(key).decode())

    def _exit_report(self) -> dict[str, Any] | None:
        if not self._attempt_store.check([EXIT_REPORT]):
            return None
        report: dict[str, Any] = json.loads(self._attempt_store.get(EXIT_REPORT).decode())
        return report

    @property
    def _store(self) -> Any:
        """The key-value store of the launch, whose keys survive a restart of the ranks."""
        if self._launch is None:
            import torch.distributed as dist

            ranks = self._ranks
            serves = ranks.is_first and not ranks.launcher_has_store
            store = dist.TCPStore(
                ranks.address, ranks.port, is_master=serves, wait_for_workers=False
            )
            self._launch = _prefixed("gpt2ckpt", store)
        return self._launch

    @property
    def _attempt_store(self) -> Any:
        """The part of the store for this attempt, which is empty when the attempt starts."""
        if self._attempt is None:
            self._attempt = _prefixed(f"attempt_{self._ranks.attempt}", self._store)
        return self._attempt

    def launcher_has_died(self) -> bool:
        """Return whether torchrun has died and therefore cannot end or restart this rank."""
        return os.getppid() != self._launcher

    # ------------------------------------------------ collectives, during training

    def join(self, device: "torch.device") -> None:
        """Create PyTorch's process group for training on `device`."""
        import torch.distributed as dist

        is_cuda = device.type == "cuda"
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
            store=_prefixed("group", self._attempt_store),
            rank=self.rank,
            world_size=self.size,
            device_id=device if is_cuda else None,
        )

    def all_reduce_max(self, numbers: list[int]) -> list[int]:
        """Return the element-wise maximum of `numbers` (int64) over all ranks."""
        import torch
        import torch.distributed as dist

        shared = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return [int(number) for number in shared]

    def all_reduce_mean(self, number: float) -> float:
        """Return the mean of `number` (float64) over all ranks, bitwise equal on all of them."""
        import torch
        import torch.distributed as dist

        shared = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(shared)
        return float(shared) / self.size

    def broadcast(self, text: str) -> str:
        """Return the `text` of the first rank."""
        import torch
        import torch.distributed as dist

        content = text.encode() if self.is_first else b""
        [size] = self.all_reduce_max([len(content)])
        shared = torch.tensor(list(content.ljust(size)), dtype=torch.uint8)
        dist.broadcast(shared, 0)
        return bytes(shared.tolist()).decode()

    def all_gather(self, rows: "torch.Tensor") -> "torch.Tensor":
        """Return the rows of all ranks, stacked by rank.

        Args:
            rows: A CPU tensor of the same shape and dtype on all ranks.

        Returns:
            A tensor of shape [size, *rows.shape].
        """
        import torch
        import torch.distributed as dist

        gathered = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(gathered, rows)
        return torch.stack(gathered)


ProcessGroup: TypeAlias = SingleProcess | DistributedGroup


def _prefixed(prefix: str, store: Any) -> Any:
    import torch.distributed as dist

    return dist.PrefixStore(prefix, store)


def _is_of_communication(error: BaseException) -> bool:
    from torch.distributed import DistError

    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(w in str(error).lower() for w in ("gloo", "nccl"))
    )
