"""The savers: each keeps a valid state in a folder at any time."""

import logging
import os
import shutil
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from experiments.checkpoint_cost.states import tensors
from gpt2ckpt.checkpoint.manager import CheckpointManager, SavingOptions
from gpt2ckpt.checkpoint.retention import Retention, SaveRequest

State = dict[str, Any]


class Saver(Protocol):
    """`save` returns when the state may change again, `wait` when it is durable."""

    def save(self, state: State, number: int) -> None: ...
    def wait(self) -> None: ...


class Own:
    """gpt2ckpt: a regular save with all roles, as in a training run."""

    def __init__(self, folder: Path, *, in_background: bool) -> None:
        logging.basicConfig(level=logging.WARNING)
        retention = Retention(keep_rolling=1, keep_emergency=1)
        self._manager = CheckpointManager(
            folder, retention, None, options=SavingOptions(in_background=in_background)
        )

    def save(self, state: State, number: int) -> None:
        state["step"] = number
        self._manager.save(state, SaveRequest(step=number, when=datetime.now(), regular=True))

    def wait(self) -> None:
        self._manager.wait()
        assert self._manager.failed_step is None


class TorchSave:
    """torch.save to a new file, fsync and rename, as in a careful script."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State, number: int) -> None:
        temporary = self._folder / "new.pt"
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._folder / "state.pt")

    def wait(self) -> None:
        """Return at once."""


class Safetensors:
    """safetensors.torch.save_file, fsync and rename; tensors only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State, number: int) -> None:
        from safetensors.torch import save_file

        temporary = self._folder / "new.safetensors"
        save_file(tensors(state), temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(self._folder / "state.safetensors")

    def wait(self) -> None:
        """Return at once."""


class Distributed:
    """torch.distributed.checkpoint into a new folder per save, deleting the one before last.

    The asynchronous variant reuses its stager and thus its memory, which is its fastest mode.
    """

    def __init__(self, folder: Path, *, in_background: bool) -> None:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self._folder = folder
        options = StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
        self._stager = DefaultStager(options) if in_background else None
        self._running: Future[Any] | None = None

    def save(self, state: State, number: int) -> None:
        import torch.distributed.checkpoint as dcp

        target = self._folder / str(number)
        shutil.rmtree(self._folder / str(number - 2), ignore_errors=True)
        content = {key: state[key] for key in ("model", "optimizer")}
        if self._stager is None:
            dcp.save(content, checkpoint_id=target, no_dist=True)
        else:
            self._running = dcp.async_save(  # type: ignore[assignment]
                content, checkpoint_id=target, async_stager=self._stager, no_dist=True
            )

    def wait(self) -> None:
        if self._running is not None:
            self._running.result()


SAVERS = {
    "gpt2ckpt": lambda folder: Own(folder, in_background=True),
    "gpt2ckpt, async_save=false": lambda folder: Own(folder, in_background=False),
    "torch.save + fsync": TorchSave,
    "safetensors + fsync": Safetensors,
    "dcp.save": lambda folder: Distributed(folder, in_background=False),
    "dcp.async_save": lambda folder: Distributed(folder, in_background=True),
}
OWN, YARDSTICK = "gpt2ckpt", "torch.save + fsync"
