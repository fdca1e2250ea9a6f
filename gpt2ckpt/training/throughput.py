"""Speed, memory and time left; the one place that talks to the clock of the loop."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True)
class Speed:
    """How fast training is, in what memory, and how long it still takes.

    `tokens_per_s` is of training alone; `mfu` is the share of the device's peak that the model's
    arithmetic takes. What cannot be known is None.
    """

    tokens_per_s: float
    seconds_left: float
    memory_bytes: int | None
    mfu: float | None

    def event(self) -> dict[str, float]:
        """Return what is logged of it: what is known."""
        values = {
            "tokens_per_s": self.tokens_per_s,
            "memory_bytes": self.memory_bytes,
            "mfu": self.mfu,
        }
        return {key: value for key, value in values.items() if value is not None}


class Meter:
    """Measures training between two calls of `measure`, without evaluations and saves.

    Args:
        tokens_per_step: tokens of an optimizer step.
        device: whose memory is measured.
        peak_tokens_per_s: tokens per second at the peak of all devices, for the MFU; None if it is
            not known.
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
        self.steps = 0  # that this process made, also those that it went back on
        self.speeds: list[float] = []

    def start(self, step: int) -> None:
        """Start to measure: `step` steps of the run are done."""
        self._since = time.perf_counter()
        if not self.steps:
            self._begun = self._since
        self._paused, self._step = 0.0, step
        self._pace_from, self._first = (step, self._since), None

    def count(self, step: int) -> None:
        """Count a step of this process, after which `step` steps of the run are done.

        The first is not like the others: memory is taken and the model compiled in it. So the pace
        is that of the steps after it, as soon as there are any.
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
        """Time spent in here is no training time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    @property
    def seconds(self) -> float:
        """Since the first `start`, everything included."""
        return time.perf_counter() - self._begun

    def memory_bytes(self) -> int | None:
        """What training takes: allocated on the GPU at most, else resident now; None if unknown."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        try:
            return int(psutil.Process().memory_info().rss)
        except (psutil.Error, OSError):
            return None
