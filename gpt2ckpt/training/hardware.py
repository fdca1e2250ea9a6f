"""The device, precision and threads of a process, with the reasons for them."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from gpt2ckpt.checkpoint.state import Environment
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.parallel.process_group import DistributedGroup, ProcessGroup
from gpt2ckpt.runs.start import Start
from gpt2ckpt.training.numerics import changed_variables, numerics
from gpt2ckpt.training.validate_run import ValidatedRun

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


@dataclass(frozen=True)
class Hardware:
    """The device of a process, its precision and its threads.

    The reasons, a few words each, are for the start report.
    """

    device: torch.device
    device_reason: str
    precision: str
    precision_reason: str
    threads: int

    @property
    def name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        if self.device.type == "mps":
            return "Apple GPU"
        return str(_cpu_features().get("cpu_name", "CPU"))

    @property
    def memory_bytes(self) -> int:
        """Return the memory of the device in bytes; of an Apple GPU, that of the machine."""
        if self.device.type == "cuda":
            return int(torch.cuda.get_device_properties(self.device).total_memory)
        return int(psutil.virtual_memory().total)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context for forward passes."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    def recorded(self, ranks: int) -> Environment:
        """Return the record for a checkpoint; a resume is bitwise exact only if it is equal."""
        return Environment(
            device=self.device.type,
            device_name=self.name,
            precision=self.precision,
            threads=self.threads,
            ranks=ranks,
            **numerics(self.device),
        )


def choose_hardware(
    device: str,
    precision: str,
    threads: int | None,
    recorded: Environment | None = None,
    local_rank: int | None = None,
) -> Hardware:
    """Return the hardware for a config; `auto` and null are resolved.

    Args:
        device: trainer.device.
        precision: trainer.precision.
        threads: trainer.threads.
        recorded: The environment of the run's earlier processes; takes precedence over automatic
            choices.
        local_rank: The number of this rank on its machine, and of its GPU.

    Raises:
        ConfigError: The device is not available, or does not support the precision.
    """
    chosen, device_reason = _choose_device(device)
    if local_rank is not None and chosen.type == "cuda":
        chosen, device_reason = _gpu_of_rank(device, local_rank), "the GPU of this rank"
    same_device = recorded if recorded is not None and recorded.device == chosen.type else None
    if threads is None and same_device is not None:
        threads = same_device.threads
    if precision == "auto" and same_device is not None:
        precision, reason = same_device.precision, "as before the resume"
    elif precision == "auto":
        precision, reason = _choose_precision(chosen)
    else:
        reason = "as configured"
    if precision == "float16" and chosen.type != "cuda":
        raise ConfigError("precision=float16 needs a CUDA device: use bfloat16, float32 or auto")
    return Hardware(chosen, device_reason, precision, reason, threads or torch.get_num_threads())


def hardware_of(start: Start, validated: ValidatedRun, group: ProcessGroup) -> Hardware:
    """Return the hardware of this rank. Raises ConfigError if it is not available."""
    trainer = validated.config.trainer
    recorded = start.state.environment if start.state else None
    if recorded is not None and recorded.ranks != group.size:
        recorded = replace(recorded, threads=0)
    local_rank = group.local_rank if isinstance(group, DistributedGroup) else None
    return choose_hardware(trainer.device, trainer.precision, trainer.threads, recorded, local_rank)


def prepare_process(hardware: Hardware, *, deterministic: bool) -> None:
    """Set the process-wide switches of PyTorch. Call it once, before any tensor is created."""
    torch.set_num_threads(hardware.threads)
    if hardware.device.type == "cpu":
        _keep_freed_memory()
    if hardware.device.type == "cuda":
        torch.cuda.set_device(hardware.device)
    torch.set_float32_matmul_precision("high")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    # Here, uninitialized memory is always written before it is read; filling it wastes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step instead of returning it to the kernel.

    Otherwise the kernel maps and clears new pages for the activations and gradients of each step,
    which takes up to a quarter of the time; the peak memory stays about the same. The settings, of
    mallopt(3): large allocations are not mapped separately, and the heap is never trimmed.
    """
    _set_malloc(mmap_max=0, trim_threshold=-1)


def return_freed_memory() -> None:
    """Return freed memory to the kernel, now and from now on, by the defaults of glibc."""
    _set_malloc(mmap_max=65536, trim_threshold=128 * 1024)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _set_malloc(mmap_max: int, trim_threshold: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, mmap_max)
        mallopt(_M_TRIM_THRESHOLD, trim_threshold)


def differences(now: Environment, recorded: Environment) -> list[str]:
    """Return the differences that make a resume not bitwise exact, such as `threads 2 → 4`.

    Properties that an earlier version did not record, or that the device does not have, are
    ignored.
    """
    before = vars(recorded)
    found = [
        f"{key} {before[key]} → {value}"
        for key, value in vars(now).items()
        if key != "variables" and None not in (value, before[key]) and value != before[key]
    ]
    if recorded.variables is not None:
        found += changed_variables(now.variables or {}, recorded.variables)
    return found


def _choose_device(device: str) -> tuple[torch.device, str]:
    has_mps = torch.backends.mps.is_available()
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device()), "a CUDA device is available"
        if has_mps:
            return torch.device("mps"), "an Apple GPU is available"
        return torch.device("cpu"), "no GPU is available"
    kind, _, index = device.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={device}: PyTorch finds no CUDA device: set it to auto or cpu")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(
            f"device={device}: there are {count} CUDA devices: use cuda:0 to cuda:{count - 1}"
        )
    if kind == "mps" and not has_mps:
        raise ConfigError("device=mps: PyTorch finds no Apple GPU: set it to auto or cpu")
    return torch.device(device), "as configured"


def _gpu_of_rank(device: str, local_rank: int) -> torch.device:
    if ":" in device:
        raise ConfigError(f"trainer.device={device} is one GPU for all ranks: use cuda or auto")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"rank {local_rank} of this machine has no GPU, as it has {torch.cuda.device_count()}: "
            "start at most as many ranks (--nproc_per_node), or use trainer.device=cpu"
        )
    return torch.device("cuda", local_rank)


def _choose_precision(device: torch.device) -> tuple[str, str]:
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "the GPU supports it"
        return "float16", "the GPU has no bfloat16; the loss is scaled"
    if device.type == "cpu" and _cpu_has_bfloat16():
        return "bfloat16", "the CPU has instructions for it, about twice as fast as float32"
    return "float32", "the fastest on this device"


def _cpu_has_bfloat16() -> bool:
    features = _cpu_features()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


def _cpu_features() -> Mapping[str, Any]:
    """Return the features of the processor; empty if this PyTorch does not report them."""
    ask = getattr(torch.cpu, "get_capabilities", dict)
    return dict(ask())
