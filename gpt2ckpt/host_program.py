"""What a training borrows from the program that calls `gpt2ckpt.train`, and how it is given back.

A command owns its process. A host program has handlers, settings and a log of its own, and must
find them unchanged after the call, whether it returns or raises. docs/python.md lists what stays.
"""

import contextlib
import copy
import gc
import logging
import logging.config
import os
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase
from omegaconf import OmegaConf

from gpt2ckpt.console import printable_on
from gpt2ckpt.errors import LockedError
from gpt2ckpt.signals.host import HostSignals
from gpt2ckpt.single_run import CommandProcess

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # prepare_process sets it for deterministic algorithms
FILL = "fill_uninitialized_memory"
_busy = threading.Lock()  # held by the training or the loading of a model in this process

log = logging.getLogger(__name__)


class HostProgram(CommandProcess):
    """The process of a program that calls `gpt2ckpt.train`: every change to it is undone.

    One training at a time can run in it, since random generators, settings of PyTorch and Hydra's
    state belong to the process and not to a thread.
    """

    configures_logging = False
    signals: HostSignals

    def __init__(self) -> None:
        self.signals = HostSignals()
        self._has_torch = "torch" in sys.modules

    def prepare_output(self) -> None:
        """Do nothing: the output streams are the host's."""

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Restore the host's state at the end of the block.

        If the host has not imported torch, `torch_settings` does this for torch.

        Raises:
            LockedError: another call in this process has not returned yet.
        """
        if not _busy.acquire(blocking=False):
            raise LockedError(
                "another training runs in this process, and random generators and settings of "
                "PyTorch exist once per process: wait until it ends, or use another process"
            )
        torch_settings = torch_kept() if self._has_torch else contextlib.nullcontext()
        try:
            with _hydra_kept(), warnings.catch_warnings(), torch_settings:
                yield
        finally:
            _free_memory()
            _busy.release()

    def torch_settings(self) -> contextlib.AbstractContextManager[None]:
        """Return the context that restores PyTorch's defaults, if this process imports torch now.

        PyTorch has no settings of the host then.
        """
        return contextlib.nullcontext() if self._has_torch else torch_kept()

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Log to train.log, and to the host's handlers or else to stdout, in the block.

        The host's handlers get what its own level for the logger `gpt2ckpt` admits.
        """
        logger = logging.getLogger("gpt2ckpt")
        handlers, level, propagate = logger.handlers, logger.level, logger.propagate
        own = _handlers(_ToHost(logger), level or logging.INFO)
        logger.handlers, logger.propagate = own, False
        logger.setLevel(logging.INFO)
        try:
            if threading.current_thread() is not threading.main_thread():
                log.warning(
                    "signals are not handled, since this is not the main thread: Ctrl+C and "
                    "SIGTERM do not save a checkpoint of this training"
                )
            yield
        finally:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
            for handler in own:
                handler.close()


def _free_memory() -> None:
    """Free the model and the data, which are in reference cycles."""
    if "torch" in sys.modules:
        from gpt2ckpt.training.hardware import return_freed_memory

        gc.collect()
        return_freed_memory()


class _ToHost(logging.Handler):
    """Passes records to the handlers of the host, as its configuration of a logger says."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._host = logging.Logger(logger.name, logger.getEffectiveLevel())
        self._host.handlers, self._host.parent = logger.handlers, logger.parent
        self._host.propagate = logger.propagate

    def takes(self, record: logging.LogRecord) -> bool:
        """Return whether a handler of the host gets `record`."""
        return self._host.isEnabledFor(record.levelno) and self._host.hasHandlers()

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on."""
        if self.takes(record):
            self._host.callHandlers(record)


class _Console(logging.StreamHandler[Any]):
    """Writes to stdout as it is at the start of the training, in any encoding."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with characters replaced that the stream cannot encode."""
        return printable_on(self.stream, super().format(record))


def _handlers(host: _ToHost, level: int) -> list[logging.Handler]:
    """Return `host` and the handlers of hydra.job_logging, which a command adds to the root logger.

    Records that the host takes are not printed, nor those below `level`.
    """
    config: Any = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=True)
    builder: Any = logging.config.DictConfigurator(config)
    formatters = builder.config.get("formatters", {})
    for name in formatters:
        formatters[name] = builder.configure_formatter(formatters[name])
    handlers: list[logging.Handler] = [host]
    for name in (config.get("root") or {}).get("handlers", []):
        handler = builder.configure_handler(builder.config["handlers"][name])
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            console = _Console(sys.stdout)
            console.setFormatter(handler.formatter)
            console.setLevel(level)
            console.addFilter(lambda record: not host.takes(record))
            handler = console
        handlers.append(handler)
    return handlers


@contextlib.contextmanager
def _hydra_kept() -> Iterator[None]:
    """Restore Hydra's state in this process, in which the host may run as a Hydra application.

    The schemas that were registered in Hydra's ConfigStore stay.
    """
    with contextlib.ExitStack() as stack:
        for singleton, name, value in (
            (GlobalHydra.instance(), "hydra", GlobalHydra.instance().hydra),
            (HydraConfig.instance(), "cfg", HydraConfig.instance().cfg),
            (VersionBase.instance(), "version_base", VersionBase.instance().getbase()),
            (JobRuntime.instance(), "conf", copy.copy(JobRuntime.instance().conf)),
        ):
            stack.callback(setattr, singleton, name, value)
        yield


@contextlib.contextmanager
def torch_kept() -> Iterator[None]:
    """Set PyTorch's defaults for the block, and restore the host's settings at its end."""
    import torch
    from torch.utils import deterministic

    with contextlib.ExitStack() as stack:
        keep = stack.callback
        keep(torch.set_num_threads, torch.get_num_threads())
        keep(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        keep(
            torch.use_deterministic_algorithms,
            torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        fills: Any = deterministic
        keep(setattr, fills, FILL, getattr(fills, FILL))
        if CUBLAS not in os.environ:
            keep(os.environ.pop, CUBLAS, None)
        keep(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        stack.enter_context(on_cpu())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_generators_kept())
        yield


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Create tensors on the CPU in the block, whatever default device the host has set."""
    import torch

    is_default = torch.get_default_device().type == "cpu"
    with contextlib.nullcontext() if is_default else torch.device("cpu"):
        yield


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    """Restore the random generators, and the GPU in use, at the end of the block."""
    import numpy as np
    import torch

    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    gpu, gpus = 0, None
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gpu, gpus = torch.cuda.current_device(), torch.cuda.get_rng_state_all()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if mps is not None:
            torch.mps.set_rng_state(mps)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.set_device(gpu)
            if gpus is not None:
                torch.cuda.set_rng_state_all(gpus)
            else:  # as PyTorch seeds them when CUDA is first used
                torch.cuda.manual_seed_all(torch.Generator().initial_seed())
