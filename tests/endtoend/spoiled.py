"""The train command with a weight that becomes infinite after step 9 on the last rank."""

import os
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from gpt2ckpt.train import main

SPOILED_AFTER = 9
steps = []


def spoil(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    steps.append(1)
    is_last_rank = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
    if len(steps) == SPOILED_AFTER and is_last_rank:
        with torch.no_grad():
            optimizer.param_groups[0]["params"][1][3, 4] = float("inf")


if __name__ == "__main__":
    register_optimizer_step_post_hook(spoil)
    main()
