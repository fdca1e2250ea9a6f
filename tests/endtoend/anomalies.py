"""The train command with a NaN loss (step 4), a loss spike (step 16) and a non-finite weight."""

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.train import main

FACTORS = {4: float("nan"), 16: 50.0}  # by the number of the training loss
BAD_WEIGHT_AFTER = 23  # updates
calls: list[int] = []
updates: list[int] = []
real = GPT2.loss


def loss(self: GPT2, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    value = real(self, inputs, targets)
    if not value.requires_grad:
        return value
    calls.append(1)
    return value * FACTORS.get(len(calls), 1.0)


def spoil(optimizer: torch.optim.Optimizer, *_: object) -> None:
    updates.append(1)
    if len(updates) == BAD_WEIGHT_AFTER:
        with torch.no_grad():
            optimizer.param_groups[0]["params"][1][3, 4] = float("inf")


if __name__ == "__main__":
    GPT2.loss = loss  # type: ignore[method-assign]
    register_optimizer_step_post_hook(spoil)
    main()
