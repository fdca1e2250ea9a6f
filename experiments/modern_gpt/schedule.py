"""A learning rate that stays at its peak and then decays linearly over a fraction of the run."""

from collections.abc import Callable
from dataclasses import dataclass

from gpt2ckpt import extend


@dataclass
class CooldownConfig:
    """Without warm-up: Muon's first steps have the size of all others."""

    cooldown: float = 0.6  # fraction of the run in which the learning rate decays
    final: float = 0.0  # factor of the learning rate at the end


@extend.schedule("cooldown", CooldownConfig)
def build(config: CooldownConfig, total_steps: int) -> Callable[[int], float]:
    """Return the factor of the learning rate by the number of steps done."""
    length = config.cooldown * total_steps

    def factor(step: int) -> float:
        left = (total_steps - step) / length if length else 1.0
        return config.final + (1 - config.final) * min(1.0, max(0.0, left))

    return factor
