"""Learning-rate schedules: pure functions of the step, so that checkpoints hold no scheduler state.

Sources: cosine decay, Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm
Restarts" (2017), without restarts; warmup-stable-decay, Hu et al., "MiniCPM: Unveiling the
Potential of Small Language Models" (2024), with the linear decay of Haegele et al., "Scaling Laws
and Compute-Optimal Training Beyond Fixed Training Durations" (2024).
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from gpt2ckpt.config import registry
from gpt2ckpt.config.schema import ConstantConfig, CosineConfig, WsdConfig
from gpt2ckpt.errors import ConfigError

Schedule: TypeAlias = Callable[[int], float]
"""Maps the number of steps done to the factor in [0, 1] of the next step's learning rate."""


def build_schedule(config: Any, total_steps: int) -> Schedule:
    """Return the schedule that a config describes.

    Args:
        config: The typed config of a schedule; with steps=null, it is as long as the run.
        total_steps: Optimizer steps of the run.

    Raises:
        ConfigError: A value is out of range, or values contradict each other.
        PluginError: A plugin raised an exception.
    """
    schedule: Schedule = registry.build("schedule", config, total_steps)
    option = registry.option_of("schedule", config)
    if option.is_built_in:
        return schedule

    def checked(step: int) -> float:
        with option.named_errors():
            factor = float(schedule(step))
            if not math.isfinite(factor):
                raise ValueError(f"it returned {factor} for step {step}")
        return factor

    return checked


def build_constant(config: ConstantConfig) -> Schedule:
    """Return a schedule with a linear warm-up, then the full learning rate."""
    _not_negative("warmup_steps", config.warmup_steps)
    return lambda step: _warmup(step, config.warmup_steps)


def build_cosine(config: CosineConfig, total_steps: int) -> Schedule:
    """Return a schedule with a linear warm-up, then a decay along half a period of a cosine."""
    _not_negative("warmup_steps", config.warmup_steps)
    end = _length(config.steps, total_steps)
    _check_ratio(config.min_lr_ratio)
    _fits("warmup_steps", config.warmup_steps, end, config.steps)

    def scale(step: int) -> float:
        if step < config.warmup_steps:
            return _warmup(step, config.warmup_steps)
        progress = _progress(step, config.warmup_steps, end)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * cosine

    return scale


def build_wsd(config: WsdConfig, total_steps: int) -> Schedule:
    """Return a schedule with a linear warm-up, a constant rate, and a linear decay at the end."""
    _not_negative("warmup_steps", config.warmup_steps)
    end = _length(config.steps, total_steps)
    _check_ratio(config.min_lr_ratio)
    _not_negative("decay_steps", config.decay_steps)
    both = config.warmup_steps + config.decay_steps
    _fits("warmup_steps + schedule.decay_steps", both, end, config.steps)
    decay_start = end - config.decay_steps

    def scale(step: int) -> float:
        if step < config.warmup_steps:
            return _warmup(step, config.warmup_steps)
        if step < decay_start or config.decay_steps == 0:
            return 1.0
        return 1.0 - (1.0 - config.min_lr_ratio) * _progress(step, decay_start, end)

    return scale


def _warmup(step: int, warmup_steps: int) -> float:
    """Return the linear warm-up: 1/warmup_steps in the first step, 1 in the last."""
    return (step + 1) / warmup_steps if step < warmup_steps else 1.0


def _progress(step: int, start: int, end: int) -> float:
    """Return the fraction of the way from `start` to `end`; 1 after `end`."""
    return (step - start) / (end - start) if step < end else 1.0


def _length(steps: int | None, total_steps: int) -> int:
    if steps is None:
        return total_steps
    if steps < 1:
        raise ConfigError(
            f"schedule.steps={steps} must be at least 1; null makes the schedule as long as the run"
        )
    return steps


def _not_negative(key: str, value: int) -> None:
    if value < 0:
        raise ConfigError(f"schedule.{key}={value} is negative: it must be 0 or more")


def _check_ratio(ratio: float) -> None:
    if not 0.0 <= ratio <= 1.0:
        raise ConfigError(
            f"schedule.min_lr_ratio={ratio} is out of range: it must be from 0 to 1, "
            "a fraction of optimizer.lr"
        )


def _fits(key: str, value: int, end: int, steps: int | None) -> None:
    """Raise ConfigError if `value` steps exceed a configured length of the schedule.

    Without a configured length, the run may end during the warm-up or the decay.
    """
    if steps is not None and value > end:
        raise ConfigError(
            f"schedule.{key}={value} is more than schedule.steps={end}: lower it or raise "
            "schedule.steps"
        )
