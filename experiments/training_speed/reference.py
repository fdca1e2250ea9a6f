"""A training step written out plainly, as one would after reading nanoGPT: the yardstick.

float32, the whole logits, torch.optim.AdamW as it comes, gradient clipping; optionally compiled.
Dimensions: B blocks, T tokens, C width, H heads, V words.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2ckpt.config.schema import ModelConfig

Step = Callable[[Tensor, Tensor], float]


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norm_1(x)).split(width, dim=2)
        q, k, v = (p.view(batch, length, self.heads, -1).transpose(1, 2) for p in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class Reference(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.n_embd)
        self.places = nn.Embedding(config.block_size, config.n_embd)
        self.layers = nn.ModuleList(
            Layer(config.n_embd, config.n_head) for _ in range(config.n_layer)
        )
        self.norm = nn.LayerNorm(config.n_embd)
        self.output = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.output.weight = self.words.weight
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x)
        logits = self.output(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def reference_step(config: ModelConfig, *, compiled: bool) -> Step:
    model = Reference(config)
    forward = torch.compile(model) if compiled else model
    return plain_step(model, forward)


def transformers_step(config: ModelConfig, *, bfloat16: bool) -> Step:
    """Hugging Face's model in the same plain loop; in bfloat16 also with the fused optimizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        )
    ).train()

    def forward(tokens: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            logits = model(tokens).logits
            return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    return plain_step(model, forward, fused=bfloat16)


def plain_step(
    model: nn.Module, forward: Callable[[Tensor, Tensor], Tensor], *, fused: bool = False
) -> Step:
    """Forward, backward, clip, AdamW."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=fused
    )

    def step(tokens: Tensor, targets: Tensor) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = forward(tokens, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss)

    return step
