"""`python -m experiments.gpu_recipes.run`: computes what the recipes for one GPU need.

Nothing is trained. The speeds are published ones. The memory of the activations is the number of
bytes that PyTorch saves for the backward pass, counted with tensors without data.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch._subclasses.fake_tensor import FakeTensorMode

from experiments.report import grid
from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.config.registry import build_typed
from gpt2ckpt.config.schema import TrainConfig
from gpt2ckpt.model.counts import count_flops_per_token, count_parameters
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.model.loss import CHUNK_ROWS_GPU

RESULTS = Path(__file__).parent / "results"
RECIPES = ("gpt2_small", "gpt2_small_speedrun")
FLOAT32 = 4  # bytes of a value of the weights, gradients and moments


@dataclass(frozen=True)
class Card:
    """A GPU with a published training speed of a GPT-2 of 124M parameters.

    Attributes:
        name: The GPU.
        memory: Its memory in GB.
        tokens_per_s: The published speed, in tokens per second on one GPU.
        source: Where the speed was published.
    """

    name: str
    memory: int
    tokens_per_s: float
    source: str


CARDS = (
    Card(
        name="RTX 4090",
        memory=24,
        tokens_per_s=135e3,
        source="modded-nanogpt on one card: 130,000 to 140,000 tokens/s",
    ),
    Card(
        name="A100 SXM",
        memory=80,
        tokens_per_s=10e9 / (90 * 60) / 8,
        source="llm.c, discussion 481: 10 billion tokens in 90 minutes on 8 GPUs",
    ),
    Card(
        name="H100 SXM",
        memory=80,
        tokens_per_s=10e9 / (45 * 60) / 8,
        source="modded-nanogpt, record 1: llm.c's 10 billion tokens in 45 minutes on 8 GPUs",
    ),
)


def main() -> None:
    """Compute the tables, write them to results/ and print them."""
    configs = {name: _config(name) for name in RECIPES}
    speeds = [
        [card.name, f"{card.memory} GB", f"{card.tokens_per_s:,.0f}", card.source] for card in CARDS
    ]
    text = "\n\n".join(
        [
            f"`python -m experiments.gpu_recipes.run`, {date.today()}, torch {torch.__version__}",
            "Computed; the recipes were not run.",
            grid(
                ["recipe", "parameters", "steps", "tokens a step", "tokens", "PFLOP"],
                [[name, *_plan(config)] for name, config in configs.items()],
            ),
            grid(
                ["recipe", "weights, gradients, moments", "activations", "loss", "total"],
                [[name, *_memory(config)] for name, config in configs.items()],
            ),
            grid(
                ["recipe", *(card.name for card in CARDS)],
                [[name, *_hours(config)] for name, config in configs.items()],
            ),
            grid(["GPU", "memory", "tokens/s", "source"], speeds),
        ]
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "table.md").write_text(f"{text}\n")
    print(text)


def _config(experiment: str) -> TrainConfig:
    data = ["data=tokens", "data.train=train_*.bin", "data.val=val_*.bin"]
    values = compose_config("train", [f"experiment={experiment}", *data]).values
    config: TrainConfig = build_typed("train", values)
    return config


def tokens_per_step(config: TrainConfig) -> int:
    """Return the tokens that one optimizer step trains on."""
    return config.trainer.batch_size * config.trainer.grad_accum * config.model.block_size


def total_tokens(config: TrainConfig) -> int:
    """Return the tokens of the complete run."""
    assert config.trainer.max_steps is not None
    return config.trainer.max_steps * tokens_per_step(config)


def activation_bytes(config: TrainConfig) -> int:
    """Return the bytes that a micro-batch saves for its backward pass, in bfloat16.

    Each kernel saves its own inputs, as without torch.compile, which saves less.
    """
    return _saved_bytes(config, config.trainer.batch_size)


def _saved_bytes(config: TrainConfig, blocks: int) -> int:
    """Return the bytes of the storages that a forward pass saves, parameters excluded."""
    saved: dict[int, UntypedStorage] = {}  # holds them, so that no address is used twice

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with FakeTensorMode():  # tensors without data: nothing is computed
        model = GPT2(config.model)
        tokens = torch.zeros(blocks, config.model.block_size, dtype=torch.int64)
        hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", dtype=torch.bfloat16):
            model.loss(tokens, tokens)
        for parameter in model.parameters():
            saved.pop(parameter.untyped_storage()._cdata, None)
        return sum(storage.nbytes() for storage in saved.values())


def loss_bytes(config: TrainConfig) -> int:
    """Return the bytes that `linear_cross_entropy` takes: the logits of a chunk and gradients."""
    model, rows = config.model, config.trainer.batch_size * config.model.block_size
    logits = min(rows, CHUNK_ROWS_GPU) * model.vocab_size * (2 + 4)  # bfloat16 and float32
    gradients = (model.vocab_size + rows) * model.n_embd * 4
    return logits + gradients + model.vocab_size * model.n_embd * 2  # the weight in bfloat16


def _plan(config: TrainConfig) -> list[str]:
    tokens = total_tokens(config)
    work = tokens * count_flops_per_token(config.model)
    return [
        f"{count_parameters(config.model).total:,}",
        f"{config.trainer.max_steps:,}",
        f"{tokens_per_step(config):,}",
        f"{tokens:,}",
        f"{work / 1e15:,.0f}",
    ]


def _memory(config: TrainConfig) -> list[str]:
    # Muon keeps one moment of each matrix of the transformer blocks, AdamW two of each value.
    matrices = 12 * config.model.n_layer * config.model.n_embd**2
    values = 4 * count_parameters(config.model).total
    values -= matrices if config.optimizer.kind == "muon" else 0
    parts = [values * FLOAT32, activation_bytes(config), loss_bytes(config)]
    return [f"{part / 1e9:.1f} GB" for part in (*parts, sum(parts))]


def _hours(config: TrainConfig) -> list[str]:
    hours: list[Any] = [total_tokens(config) / card.tokens_per_s / 3600 for card in CARDS]
    return [f"{each:.1f} h" for each in hours]


if __name__ == "__main__":
    main()
