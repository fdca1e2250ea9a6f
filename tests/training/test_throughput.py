"""Speed, time left and MFU."""

import math
from collections.abc import Iterator

import pytest
import torch

from gpt2ckpt.training import throughput
from gpt2ckpt.training.throughput import Meter, peak_flops


class Clock:
    """A clock that the test advances."""

    now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def make_steps(measured: Meter, clock: Clock, steps: range, seconds: float) -> None:
    for step in steps:
        clock.now += seconds
        measured.count(step)


def test_time_left_ignores_first_step_that_compiles(clock: Clock) -> None:
    measured = Meter(100, torch.device("cpu"))
    measured.start(0)
    make_steps(measured, clock, range(1, 2), seconds=180)
    assert measured.measure(1, 1000).seconds_left == 180 * 999, "there is nothing else to go by"
    make_steps(measured, clock, range(2, 11), seconds=0.5)
    speed = measured.measure(10, 1000)
    assert (speed.seconds_left, speed.tokens_per_s) == (0.5 * 990, 200)
    with measured.paused():
        clock.now += 5  # an evaluation, as often as before
    make_steps(measured, clock, range(11, 21), seconds=0.5)
    speed = measured.measure(20, 1000)
    assert (speed.seconds_left, speed.tokens_per_s) == ((19 * 0.5 + 5) / 19 * 980, 200)


def test_meter_counts_steps_of_this_process_only(clock: Clock) -> None:
    measured = Meter(100, torch.device("cpu"))
    measured.start(500)
    make_steps(measured, clock, range(501, 511), seconds=2)
    assert measured.measure(510, 600).seconds_left == 2 * 90
    assert (measured.steps, measured.seconds) == (10, 20)


def test_rollback_keeps_step_count_of_process(clock: Clock) -> None:
    measured = Meter(100, torch.device("cpu"))
    measured.start(0)
    make_steps(measured, clock, range(1, 8), seconds=1)
    measured.start(4)
    make_steps(measured, clock, range(5, 9), seconds=1)
    speed = measured.measure(8, 10)
    assert (speed.tokens_per_s, speed.seconds_left) == (100, 2)
    assert (measured.steps, measured.seconds) == (11, 11)


def test_steps_of_zero_duration_do_not_divide_by_zero(clock: Clock) -> None:
    measured = Meter(100, torch.device("cpu"))
    measured.start(0)
    make_steps(measured, clock, range(1, 3), seconds=0)
    speed = measured.measure(2, 2)
    assert math.isfinite(speed.tokens_per_s) and speed.seconds_left == 0


def test_mfu_is_logged_when_peak_is_known(clock: Clock) -> None:
    known = Meter(100, torch.device("cpu"), peak_tokens_per_s=1000)
    known.start(0)
    make_steps(known, clock, range(1, 2), seconds=1)
    assert known.measure(1, 10).event()["mfu"] == 0.1
    unknown = Meter(100, torch.device("cpu"))
    unknown.start(0)
    make_steps(unknown, clock, range(1, 2), seconds=1)
    assert set(unknown.measure(1, 10).event()) == {"tokens_per_s", "memory_bytes"}


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100-PCIE-40GB", "float32", 156),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H200", "float16", 989.4),
        ("Tesla V100-SXM2-16GB", "float16", 125),
        ("Tesla T4", "float32", 8.1),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", None),
        ("NVIDIA RTX A1000", "bfloat16", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16", None),
        ("Tesla T4", "bfloat16", None),
        ("AMD EPYC", "float32", None),
    ],
)
def test_peak_flops_by_device_name(name: str, precision: str, tera: float | None) -> None:
    assert peak_flops(name, precision) == (None if tera is None else tera * 1e12)
