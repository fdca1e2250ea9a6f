"""Speed, memory, time left, and the share of the peak FLOP/s (MFU)."""

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch

_TERA = 1e12
_SIXTEEN = ("bfloat16", "float16")
# Peak TFLOP/s of dense matrix products in NVIDIA's data sheets: in 16 bits with float32
# accumulation, and in TF32, which hardware.py enables for float32. The first pattern that matches
# the device name is used.
_PEAKS = (
    (r"\bB200\b", 2250.0, 1125.0),
    (r"\bGH200\b", 989.4, 494.7),
    (r"\bH200 NVL\b", 835.5, 417.5),
    (r"\bH200\b", 989.4, 494.7),
    (r"\bH100 NVL\b", 835.5, 417.5),
    (r"\bH100 PCIe\b", 756.0, 378.0),
    (r"\bH100 80GB HBM3\b", 989.4, 494.7),
    (r"\bA100\b", 312.0, 156.0),
    (r"\bA30\b", 165.0, 82.0),
    (r"\bA40\b", 149.7, 74.8),
    (r"\bA10\b", 125.0, 62.5),
    (r"\bL40S\b", 362.0, 183.0),
    (r"\bL40\b", 181.0, 90.5),
    (r"\bL4\b", 121.0, 60.0),
    (r"\bRTX A6000\b", 154.8, 77.4),
    (r"\bRTX 4090$", 165.2, 82.6),
    (r"\bRTX 3090$", 71.0, 35.6),
    (r"\bV100-SXM2\b", 125.0, 15.7),
    (r"\bV100-PCIE\b", 112.0, 14.0),
    (r"\bT4\b", 65.0, 8.1),
)
_WITHOUT_BFLOAT16 = re.compile(r"\b(V100|T4)\b")


@dataclass(frozen=True)
class Speed:
    """The speed of a process, its memory, and the time left.

    Attributes:
        tokens_per_s: Tokens per second, without evaluations and saves.
        seconds_left: Estimated time to the last step.
        memory_bytes: Memory of this process; None if not known.
        mfu: Model FLOPs utilization, the share of the peak FLOP/s; None if the peak is not known.
    """

    tokens_per_s: float
    seconds_left: float
    memory_bytes: int | None
    mfu: float | None

    def event(self) -> dict[str, float]:
        """Return the known values for metrics.jsonl."""
        values = {
            "tokens_per_s": self.tokens_per_s,
            "memory_bytes": self.memory_bytes,
            "mfu": self.mfu,
        }
        return {key: value for key, value in values.items() if value is not None}


class Meter:
    """Measures the training speed of one process, without evaluations and saves.

    Call `start` before the first step and after a rollback, `count` after each step, and `measure`
    after each logged step.

    Args:
        tokens_per_step: Tokens of an optimizer step.
        device: The device whose memory is measured.
        peak_tokens_per_s: Tokens per second at the peak of all devices; None if not known.
    """

    def __init__(
        self, tokens_per_step: int, device: torch.device, peak_tokens_per_s: float | None = None
    ) -> None:
        self._tokens_per_step = tokens_per_step
        self._device = device
        self._peak = peak_tokens_per_s
        self._begun = self._since = time.perf_counter()
        self._paused = 0.0
        self._step = 0
        self._pace_from = (0, self._since)  # a step and when it was done
        self._first: tuple[int, float] | None = None
        self.steps = 0  # steps of this process, including those undone by a rollback
        self.speeds: list[float] = []

    def start(self, step: int) -> None:
        """Start to measure, after `step` steps of the run."""
        self._since = time.perf_counter()
        if not self.steps:
            self._begun = self._since
        self._paused, self._step = 0.0, step
        self._pace_from, self._first = (step, self._since), None

    def count(self, step: int) -> None:
        """Count a step of this process, after which `step` steps of the run are done.

        The estimate of the time left excludes the first step, which allocates memory and compiles
        the model, as soon as there is a second one.
        """
        self.steps += 1
        if self._first is None:
            self._first = (step, time.perf_counter())
        else:
            self._pace_from = self._first

    def measure(self, step: int, total_steps: int) -> Speed:
        """Return the speed since the last call, and the time left at the pace of this process."""
        now = time.perf_counter()
        seconds = max(now - self._since - self._paused, 1e-9)
        tokens_per_s = (step - self._step) * self._tokens_per_step / seconds
        self.speeds.append(tokens_per_s)
        begun_step, begun = self._pace_from
        pace = (now - begun) / max(step - begun_step, 1)
        self._since, self._paused, self._step = now, 0.0, step
        mfu = tokens_per_s / self._peak if self._peak else None
        return Speed(tokens_per_s, pace * (total_steps - step), self.memory_bytes(), mfu)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent in this context."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """Return the seconds since the first `start`, evaluations and saves included."""
        return time.perf_counter() - self._begun

    def memory_bytes(self) -> int | None:
        """Return the peak of allocated GPU memory, or the resident memory; None if unknown."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        try:
            return int(psutil.Process().memory_info().rss)
        except (psutil.Error, OSError):
            return None


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return the peak of a CUDA device in floating-point operations per second; None if unknown.

    The model FLOPs utilization (MFU) is a share of this peak. The peak is unknown for a device that
    is not in the table, a precision that the device does not support, and a part of a GPU (MIG).
    """
    if "MIG" in device_name:
        return None
    if precision == "bfloat16" and _WITHOUT_BFLOAT16.search(device_name):
        return None
    for pattern, sixteen, thirty_two in _PEAKS:
        if re.search(pattern, device_name):
            return _TERA * (sixteen if precision in _SIXTEEN else thirty_two)
    return None
