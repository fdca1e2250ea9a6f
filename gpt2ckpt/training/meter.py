"""Speed, memory and time left; the one place that talks to the clock of the loop."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True)
class Speed:
    """What a step line shows beside the loss; `tokens_per_s` is of training alone."""

    tokens_per_s: float
    memory_bytes: int
    seconds_left: float


class Meter:
    """Measures training between two calls of `measure`, without evaluations and saves."""

    def __init__(self, tokens_per_step: int, device: torch.device) -> None:
        self._tokens_per_step = tokens_per_step
        self._device = device
        self._process = psutil.Process()
        self._begun = self._since = time.perf_counter()
        self._paused = 0.0
        self._step = self._first_step = 0
        self.speeds: list[float] = []

    def start(self, step: int) -> None:
        """Begin to measure: `step` steps are done."""
        self._begun = self._since = time.perf_counter()
        self._paused, self._step, self._first_step = 0.0, step, step

    def measure(self, step: int, total_steps: int) -> Speed:
        """The speed since the last call; the time left at the pace of this process so far."""
        now = time.perf_counter()
        seconds = max(now - self._since - self._paused, 1e-9)
        tokens_per_s = (step - self._step) * self._tokens_per_step / seconds
        self.speeds.append(tokens_per_s)
        pace = (now - self._begun) / max(step - self._first_step, 1)
        self._since, self._paused, self._step = now, 0.0, step
        return Speed(tokens_per_s, self.memory_bytes(), pace * (total_steps - step))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent in here is no training time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def steps(self, step: int) -> int:
        """How many steps this process made, now that `step` are done."""
        return step - self._first_step

    @property
    def seconds(self) -> float:
        """Since `start`, everything included."""
        return time.perf_counter() - self._begun

    def memory_bytes(self) -> int:
        """What training takes: allocated on the GPU at most, else resident now."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return int(self._process.memory_info().rss)
