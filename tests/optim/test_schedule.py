import math

import pytest

from gpt2ckpt.config.schema import ConstantConfig, CosineConfig, WsdConfig
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.optim.schedule import build_schedule

ALL = [
    CosineConfig(warmup_steps=4, min_lr_ratio=0.1),
    WsdConfig(warmup_steps=4, decay_steps=6, min_lr_ratio=0.1),
    ConstantConfig(warmup_steps=4),
]


@pytest.mark.parametrize("config", ALL)
def test_warmup_is_linear_to_full_rate(config):
    scale = build_schedule(config, 20)
    assert [scale(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("config", ALL)
def test_scale_is_within_0_and_1_and_depends_on_step_only(config):
    scale = build_schedule(config, 20)
    forward = [scale(step) for step in range(30)]
    backward = [scale(step) for step in reversed(range(30))]
    assert forward == backward[::-1]
    assert all(0.0 < factor <= 1.0 for factor in forward)


def test_cosine_decays_to_minimum_and_stays():
    scale = build_schedule(CosineConfig(warmup_steps=10, min_lr_ratio=0.2), 110)
    assert scale(60) == pytest.approx(0.6)
    assert scale(35) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert scale(109) > scale(110) == scale(1000) == pytest.approx(0.2)


def test_cosine_with_own_length_ignores_run_length():
    config = CosineConfig(warmup_steps=2, steps=50)
    short, long = build_schedule(config, 10), build_schedule(config, 1000)
    assert [short(step) for step in range(60)] == [long(step) for step in range(60)]
    assert short(25) != build_schedule(CosineConfig(warmup_steps=2), 60)(25)


def test_wsd_is_constant_then_decays_linearly():
    scale = build_schedule(WsdConfig(warmup_steps=2, decay_steps=4), 10)
    assert [scale(step) for step in range(2, 12)] == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert build_schedule(WsdConfig(warmup_steps=0, decay_steps=0), 10)(9) == 1.0


def test_schedule_without_warmup_starts_at_full_rate():
    assert build_schedule(CosineConfig(warmup_steps=0), 10)(0) == 1.0
    assert build_schedule(ConstantConfig(warmup_steps=0), 10)(10**9) == 1.0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (CosineConfig(warmup_steps=11, steps=9), ["warmup_steps=11", "schedule.steps=9"]),
        (CosineConfig(steps=0), ["schedule.steps=0", "at least 1"]),
        (CosineConfig(min_lr_ratio=1.5), ["min_lr_ratio=1.5", "from 0 to 1"]),
        (CosineConfig(min_lr_ratio=math.nan), ["min_lr_ratio=nan"]),
        (WsdConfig(min_lr_ratio=-0.1), ["min_lr_ratio=-0.1"]),
        (WsdConfig(warmup_steps=5, decay_steps=6, steps=10), ["decay_steps=11", "steps=10"]),
        (WsdConfig(decay_steps=-1), ["decay_steps=-1", "0 or more"]),
        (ConstantConfig(warmup_steps=-1), ["warmup_steps=-1", "0 or more"]),
    ],
)
def test_contradictory_lengths_are_refused(config, words):
    with pytest.raises(ConfigError) as caught:
        build_schedule(config, 10)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config", [CosineConfig(warmup_steps=11), WsdConfig(warmup_steps=11, decay_steps=12)]
)
def test_run_may_end_during_warmup(config):
    scale = build_schedule(config, 10)
    assert [scale(step) for step in range(10)] == [(step + 1) / 11 for step in range(10)]
