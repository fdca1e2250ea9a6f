"""A training step like nanoGPT's on a CPU, written for this comparison.

float32, scaled-dot-product attention, all logits at once, AdamW that is not fused (nanoGPT asks for
the fused one on CUDA only), gradients clipped by torch.nn.utils.clip_grad_norm_.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.training_speed import own
from experiments.training_speed.shapes import THREADS, Shape


class Block(nn.Module):
    """Attention and MLP, each after a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict(
            {"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)}
        )
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.attn["c_attn"](self.ln_1(x)).split(width, dim=2)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attn["c_proj"](mixed.transpose(1, 2).contiguous().view(batch, length, width))
        hidden = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + self.mlp["c_proj"](hidden)


class Model(nn.Module):
    """Maps token ids and targets [B, T] to the mean cross entropy, with nanoGPT's names."""

    def __init__(self, shape: Shape, vocabulary: int) -> None:
        super().__init__()
        width = shape.n_embd
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, width),
                "wpe": nn.Embedding(shape.context, width),
                "h": nn.ModuleList(Block(width, shape.n_head) for _ in range(shape.n_layer)),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        parts = self.transformer
        x = parts["wte"](tokens) + parts["wpe"](torch.arange(tokens.shape[1]))
        for block in parts["h"]:
            x = block(x)
        logits = self.lm_head(parts["ln_f"](x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def build_step(shape: Shape, *, compiled: bool) -> Callable[[], float]:
    """Return a function that trains the next step and returns its loss."""
    torch.set_num_threads(THREADS)
    config = own.read_config(shape)
    model = Model(shape, config.model.vocab_size)
    model.load_state_dict(own.new_model(config).state_dict())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=config.optimizer.lr,
        betas=(0.9, 0.95),
    )
    loss_of = torch.compile(model) if compiled else model
    loader, position = own.open_loader(config), 0

    def step() -> float:
        nonlocal position
        tokens, targets = loader.batch(position, shape.batch)
        position += shape.batch
        loss = loss_of(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step
