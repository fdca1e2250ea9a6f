"""Runs three ranks without torchrun, as forks of one process that has imported torch.

Prints the results as JSON.

usage: python three_ranks.py PORT
"""

import json
import multiprocessing
import os
import sys

import numpy as np
import torch

from gpt2ckpt.config.schema import AdamWConfig, ModelConfig, TrainerConfig
from gpt2ckpt.data.loader import BlockLoader, validation
from gpt2ckpt.data.tokens import Piece, TokenStream
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.optim.optimizers import build_optimizer
from gpt2ckpt.parallel.ddp import ddp_loss
from gpt2ckpt.parallel.process_group import DistributedGroup
from gpt2ckpt.parallel.ranks import Ranks
from gpt2ckpt.training.evaluation import evaluate
from gpt2ckpt.training.hardware import Hardware
from gpt2ckpt.training.rng import seed_everything
from gpt2ckpt.training.state import Counters, TrainingState
from gpt2ckpt.training.step import Stepper

RANKS = 3
CPU = Hardware(torch.device("cpu"), "", "float32", "", 1)
TOKENS = (np.random.default_rng(0).integers(0, 64, 4000)).astype(np.uint16)
STREAM = TokenStream([Piece("tokens", TOKENS)], 64)


def new_state(saved: TrainingState | None = None) -> TrainingState:
    seed_everything(0)
    model = GPT2(ModelConfig(4, 2, 96, 16, 64))
    optimizer = build_optimizer(AdamWConfig(), model)
    if saved is not None:
        model.load_state_dict(saved.model.state_dict())
        optimizer.load_state_dict(saved.optimizer.state_dict())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainingState(model, optimizer, scaler, Counters())


class Uneven(GPT2):
    """A model whose losses differ so much that the order of adding them changes the sum."""

    def loss(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 5.0 ** -(tokens[0, 0] % 29).float()


def train(group: DistributedGroup, state: TrainingState, steps: range) -> TrainingState:
    """Do what a rank of a run does: wrap the model, warm up DDP, and train some steps."""
    replica = ddp_loss(state.model, state.model.loss, CPU.device)
    loader = BlockLoader(STREAM, 16, seed=1)
    stepper = Stepper(replica, loader, CPU, TrainerConfig(batch_size=2, grad_accum=3), group)
    stepper.warm_up_ddp(state)
    for step in steps:
        stepper.step(state, step * stepper.blocks)
    return state


def work(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    group = DistributedGroup(Ranks(rank, rank, RANKS, "127.0.0.1", port))
    group.join(CPU.device)
    whole = train(group, new_state(), range(8))
    resumed = train(group, new_state(train(group, new_state(), range(4))), range(4, 8))
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    batches = list(validation(STREAM, 16, 2, limit=13))  # the last round is short, so is a batch
    shared = evaluate(whole.model, batches, CPU, lambda: False, group)
    alone = evaluate(whole.model, batches, CPU, lambda: False)
    uneven, many = Uneven(whole.model.config), list(validation(STREAM, 16, 2))
    in_order = evaluate(uneven, many, CPU, lambda: False)
    found = {
        "same_bits": all(torch.equal(one, other) for one, other in pairs),
        "same_evaluation": shared == alone,
        "same_order": evaluate(uneven, many, CPU, lambda: False, group) == in_order,
        "order_shows": evaluate(uneven, many[::-1], CPU, lambda: False) != in_order,
        "largest": group.all_reduce_max([rank, -rank]),
        "mean": group.all_reduce_mean(float(rank)),
        "stopped_evaluation": evaluate(
            whole.model, batches, CPU, lambda: group.all_reduce_max([int(rank == 1)]) == [1], group
        ),
    }
    for other in range(RANKS):  # one after another, so that no line is torn
        group.all_reduce_max([0])
        if other == rank:
            print(json.dumps(found), flush=True)
    group.all_reduce_max([0])
    os._exit(0)


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(rank, int(sys.argv[1]))) for rank in range(RANKS)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))
