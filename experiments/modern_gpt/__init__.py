"""A plugin with a modern recipe: `plugins=[experiments.modern_gpt]`.

It has the options `model=modern`, `optimizer=modern_muon` and `schedule=cooldown`.
"""

from experiments.modern_gpt import model, optimizer, schedule

__all__ = ["model", "optimizer", "schedule"]
