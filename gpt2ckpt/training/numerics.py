"""The libraries, processor features and variables that determine the rounding of a computation.

PyTorch, MKL and oneDNN choose their kernels by the instructions of the processor and by environment
variables. Different kernels round differently, even on machines of the same name.
"""

import os
import platform
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash

DIGITS = 8  # of a digest: enough to detect a change
CPU_INFO = Path("/proc/cpuinfo")
# The processor flags of arithmetic instructions (x86 and ARM). Other flags, which change with the
# Linux kernel and the firmware, do not change a result.
COMPUTES = re.compile(r"(s?sse|avx|fma|f16c|amx|bmi|pni|abm|asimd|fp|sve|sme|bf16|i8mm|neon|vfp).*")
# Kernels choose the sizes of their tiles by the cache size.
MODEL = ("cpu family", "model", "cpu part", "cpu variant", "cache size")
# A resume warns of each variable whose value changed, even if the results are the same: MKL and
# oneDNN select a kernel at each call and do not report which.
CPU_VARIABLES = (
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_DYNAMIC",
    "OMP_DYNAMIC",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_CPU_ISA_HINTS",
    "DNNL_CPU_ISA_HINTS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "KMP_DETERMINISTIC_REDUCTION",
    "OPENBLAS_CORETYPE",
    "BLIS_ARCH_TYPE",
    "GLIBC_TUNABLES",
)
CUDA_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUBLASLT_WORKSPACE_SIZE",
    "DISABLE_ADDMM_CUDA_LT",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "PYTORCH_TUNABLEOP_ENABLED",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NCCL_NTHREADS",
    "NCCL_BUFFSIZE",
    "NCCL_MIN_NCHANNELS",
    "NCCL_MAX_NCHANNELS",
    "NCCL_MIN_CTAS",
    "NCCL_MAX_CTAS",
    "NCCL_P2P_DISABLE",
    "NCCL_SHM_DISABLE",
    "NCCL_NVLS_ENABLE",
    "NCCL_COLLNET_ENABLE",
)


def numerics(device: torch.device) -> dict[str, Any]:
    """Return the properties that the kernels of `device` depend on, by field of Environment."""
    found: dict[str, Any] = {"torch_build": _digest(_build())}
    if device.type == "cpu":
        found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        found["cpu_flags"] = cpu_flags()
        found["libc"] = " ".join(platform.libc_ver()).strip()
        names: tuple[str, ...] = CPU_VARIABLES
    elif device.type == "cuda":
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
        found["cuda"] = str(torch.version.cuda)
        cudnn: Callable[[], int | None] = torch.backends.cudnn.version
        found["cudnn"] = str(cudnn())
        found["nccl"] = _nccl()
        names = CUDA_VARIABLES
    else:
        names = ()
    found["variables"] = {name: os.environ[name] for name in names if name in os.environ}
    return found


def changed_variables(now: Mapping[str, str], before: Mapping[str, str]) -> list[str]:
    """Return the changed variables, each as `MKL_CBWR unset → COMPATIBLE`."""
    return [
        f"{name} {before.get(name, 'unset')} → {now.get(name, 'unset')}"
        for name in sorted({*now, *before})
        if now.get(name) != before.get(name)
    ]


def cpu_flags(info: Path = CPU_INFO) -> str:
    """Return a digest of the processor's model and instructions; of its name without `info`."""
    try:
        first = info.read_text(errors="replace").partition("\n\n")[0]
    except OSError:
        return _digest(f"{platform.machine()} {platform.processor()}")
    lines = (line.partition(":") for line in first.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    computing = sorted(flag for flag in flags if COMPUTES.fullmatch(flag))
    return _digest(" ".join([*(fields.get(name, "") for name in MODEL), *computing]))


def _build() -> str:
    """Return the build settings of PyTorch, without the line that depends on the environment."""
    lines = torch.__config__.show().splitlines()
    return "\n".join(line for line in lines if "CPU capability usage" not in line)


def _nccl() -> str:
    if not torch.distributed.is_nccl_available():
        return "none"
    version: Callable[[], tuple[int, ...]] = torch.cuda.nccl.version
    return ".".join(map(str, version()))


def _digest(text: str) -> str:
    return xxhash.xxh3_128(text.encode()).hexdigest()[:DIGITS]
