"""The ranks of one run, kept together: what the first decides, the others follow.

Before the training they talk through the store that torchrun keeps (small texts under keys), which
needs no process group and lets a rank wait without being deaf to signals. In the training they talk
by collectives: gloo for numbers on the CPU, nccl for gradients on GPUs.

Whoever ends first, for whatever reason, leaves a note under `end`. Everybody who waits reads it and
ends with the same exit code; so one sentence is printed, by the rank that knows it.
"""

import contextlib
import json
import os
import re
import time
from typing import TYPE_CHECKING, Any, TypeAlias

from gpt2ckpt.errors import UserError
from gpt2ckpt.parallel.ranks import Ranks

if TYPE_CHECKING:
    import torch

POLL = 0.05  # seconds between two looks at the store
EXIT_REPORT = "end"
DIRECTORY = "directory"


class RankLost(UserError):
    """Another rank is gone: nothing can be computed together any more."""


class SingleProcess:
    """A process that was started by itself: every agreement is with itself."""

    rank, local_rank, size, is_first = 0, 0, 1, True

    def publish_plan(self, plan: dict[str, Any]) -> None:
        """Nobody has to be asked."""

    def publish_directory(self, directory: str) -> None:
        """Nobody has to be told."""

    def directory_of_first_attempt(self) -> str | None:
        """There is no launcher that would start this again."""
        return None

    def join(self, device: "torch.device") -> None:
        """Nobody is there to join."""

    def all_reduce_max(self, numbers: list[int]) -> list[int]:
        """`numbers` themselves."""
        return numbers

    def all_reduce_mean(self, number: float) -> float:
        """`number` itself."""
        return number

    def broadcast(self, text: str) -> str:
        """`text` itself."""
        return text

    def all_gather(self, rows: "torch.Tensor") -> "torch.Tensor":
        """[1, …]: the rows of the only rank."""
        return rows.unsqueeze(0)

    def explain_error(self, error: BaseException) -> BaseException:
        """`error` itself."""
        return error


class DistributedGroup:
    """One rank of several; see the module. Every method but those on notes is for all ranks."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self.rank, self.local_rank, self.size = ranks.rank, ranks.local_rank, ranks.size
        self.is_first = ranks.is_first
        self._launcher = os.getppid()
        self._whole: Any = None
        self._attempt: Any = None

    # ------------------------------------------------ notes, before and after the training

    def publish_plan(self, plan: dict[str, Any]) -> None:
        """First rank: tell the plan and wait until every rank is ready to follow it."""
        self._notes.set("plan", json.dumps(plan))
        for rank in range(1, self.size):
            self._wait_for(f"ready/{rank}")

    def receive_plan(self) -> dict[str, Any]:
        """Other ranks: the plan. Raises SystemExit with the exit code of a rank that ended."""
        plan: dict[str, Any] = json.loads(self._wait_for("plan"))
        return plan

    def confirm_plan(self) -> None:
        """Other ranks: this rank can follow the plan."""
        self._notes.set(f"ready/{self.rank}", "")

    def publish_directory(self, directory: str) -> None:
        """First rank: the directory is claimed, training begins there; also after a restart."""
        self._store.set(DIRECTORY, directory)
        self._notes.set("go", directory)

    def receive_directory(self) -> str:
        """Other ranks: the directory that the first has claimed."""
        return self._wait_for("go")

    def directory_of_first_attempt(self) -> str | None:
        """The directory that an earlier attempt of this launch claimed; None in the first."""
        if self._ranks.attempt == 0 or not self._store.check([DIRECTORY]):
            return None
        return str(self._store.get(DIRECTORY).decode())

    def report_exit(self, code: int, reason: str = "") -> int | None:
        """Leave the note that this rank ends. None if it is the first; else that one's code."""
        note = json.dumps({"rank": self.rank, "code": code, "reason": reason})
        try:
            standing = json.loads(self._notes.compare_set(EXIT_REPORT, "", note).decode())
        except RuntimeError:
            return None  # the launcher is gone: nobody is left who could read it
        return None if standing["rank"] == self.rank else int(standing["code"])

    def wait_for_first_rank(self, code: int) -> int:
        """Other ranks: wait until the first is done with saving; its exit code.

        torchrun ends the whole group as soon as one rank ends with a code other than 0. `code` is
        this rank's own, for when the launcher is gone.
        """
        try:
            while not (note := self._exit_report()):
                time.sleep(POLL)
        except RuntimeError:
            return code
        return int(note["code"])

    def explain_error(self, error: BaseException) -> BaseException:
        """`error`, or RankLost with a reason where it only says that another rank is gone."""
        if not _is_of_communication(error):
            return error
        note = None
        with contextlib.suppress(RuntimeError):
            note = self._exit_report()
        if note and note["rank"] != self.rank and note["reason"]:
            return RankLost(f"rank {note['rank']}: {note['reason']}")
        detail = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).partition(". ")[0]
        return RankLost(
            f"another rank has ended or cannot be reached ({detail}): start again with "
            "+resume=latest"
        )

    def _wait_for(self, key: str) -> str:
        """What is noted under `key`. Raises SystemExit if a rank ends meanwhile."""
        while not self._notes.check([key]):
            if note := self._exit_report():
                raise SystemExit(note["code"])
            time.sleep(POLL)
        return str(self._notes.get(key).decode())

    def _exit_report(self) -> dict[str, Any] | None:
        if not self._notes.check([EXIT_REPORT]):
            return None
        note: dict[str, Any] = json.loads(self._notes.get(EXIT_REPORT).decode())
        return note

    @property
    def _store(self) -> Any:
        """The store of the whole launch; what is noted in it outlives a restart of the group."""
        if self._whole is None:
            import torch.distributed as dist

            ranks = self._ranks
            serves = ranks.is_first and not ranks.launcher_has_store
            store = dist.TCPStore(
                ranks.address, ranks.port, is_master=serves, wait_for_workers=False
            )
            self._whole = _prefixed("gpt2ckpt", store)
        return self._whole

    @property
    def _notes(self) -> Any:
        """The notes of this attempt."""
        if self._attempt is None:
            self._attempt = _prefixed(f"attempt_{self._ranks.attempt}", self._store)
        return self._attempt

    def launcher_has_died(self) -> bool:
        """Whether torchrun was killed: then nobody would end this rank, or start it again."""
        return os.getppid() != self._launcher

    # ------------------------------------------------ collectives, in the training

    def join(self, device: "torch.device") -> None:
        """Form the process group for a training on `device`; all ranks come together here."""
        import torch.distributed as dist

        is_cuda = device.type == "cuda"
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
            store=_prefixed("group", self._notes),
            rank=self.rank,
            world_size=self.size,
            device_id=device if is_cuda else None,
        )

    def all_reduce_max(self, numbers: list[int]) -> list[int]:
        """Element by element the largest number of any rank; the same on every rank."""
        import torch
        import torch.distributed as dist

        shared = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return [int(number) for number in shared]

    def all_reduce_mean(self, number: float) -> float:
        """The mean over all ranks; the same bits on every rank."""
        import torch
        import torch.distributed as dist

        shared = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(shared)
        return float(shared) / self.size

    def broadcast(self, text: str) -> str:
        """On every rank the text that the first rank gives."""
        import torch
        import torch.distributed as dist

        content = text.encode() if self.is_first else b""
        [size] = self.all_reduce_max([len(content)])
        shared = torch.tensor(list(content.ljust(size)), dtype=torch.uint8)
        dist.broadcast(shared, 0)
        return bytes(shared.tolist()).decode()

    def all_gather(self, rows: "torch.Tensor") -> "torch.Tensor":
        """The rows of every rank, [size, …], for CPU tensors of one shape and dtype."""
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
