"""A GPT with today's small changes to GPT-2, as an option of the group `model`.

Sources: rotary positions, Su et al. 2021 (arXiv:2104.09864); RMSNorm, Zhang and Sennrich 2019
(arXiv:1910.07467); squared ReLU, So et al. 2021 (arXiv:2109.08668); QK norm, Henry et al. 2020
(arXiv:2010.04245); value residuals, Zhou et al. 2024 (arXiv:2410.17897); the soft cap of the
logits, Gemma 2 (arXiv:2408.00118). Output projections that start at zero are from modded-nanogpt.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.modern_gpt.softcap import capped_cross_entropy, soft_cap
from gpt2ckpt import extend
from gpt2ckpt.model.attention import causal_attention
from gpt2ckpt.model.loss import linear_cross_entropy


@dataclass
class ModernConfig:
    """The shape of the model. All matrices are without biases."""

    n_layer: int = extend.setting(4, effect="shape", help="transformer blocks")
    n_head: int = extend.setting(4, effect="shape", help="attention heads")
    n_embd: int = extend.setting(128, effect="shape", help="width")
    block_size: int = extend.setting(128, effect="shape", help="tokens of context")
    vocab_size: int = extend.setting(50257, effect="shape", help="different tokens")
    tied: bool = extend.setting(True, effect="shape", help="one matrix for embedding and output")
    value_residual: bool = extend.setting(
        False, effect="shape", help="mix the values of the first block into the others"
    )
    logit_cap: float = 0.0  # soft cap of the logits; 0: none
    rope_base: float = 10000.0  # longest wavelength of the rotary positions, over 2 pi


@extend.model("modern", ModernConfig)
def build(config: ModernConfig) -> nn.Module:
    """Return the model that `config` describes."""
    return ModernGPT(config)


class ModernGPT(nn.Module):
    """Maps token ids [B, T] to logits [B, T, V]."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.cap = config.logit_cap
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.n_layer))
        self.output = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        if config.tied:
            self.output.weight = self.embedding.weight
        else:
            nn.init.zeros_(self.output.weight)
        width = config.n_embd // config.n_head
        frequency = config.rope_base ** -torch.linspace(0, 1, width // 2)
        angle = torch.outer(torch.arange(config.block_size), frequency)
        self.register_buffer("cosine", angle.cos(), persistent=False)
        self.register_buffer("sine", angle.sin(), persistent=False)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return the normalized output of the last block, [B, T, C]."""
        length = tokens.shape[1]
        rotation = (self.cosine[:length], self.sine[:length])
        x = norm(self.embedding(tokens))
        first: Tensor | None = None
        for block in self.blocks:
            x, values = block(x, rotation, first)
            first = values if first is None else first
        return norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits, [B, T, V]."""
        logits: Tensor = self.output(self.hidden(tokens))
        return soft_cap(logits, self.cap) if self.cap else logits

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy in nats per token, without all logits in memory."""
        hidden, weight = self.hidden(tokens).flatten(0, 1), self.output.weight
        if self.cap:
            return capped_cross_entropy(hidden, weight, targets.flatten(), self.cap)
        return linear_cross_entropy(hidden, weight, targets.flatten())


class Block(nn.Module):
    """Attention and MLP, each with a residual connection around it."""

    def __init__(self, config: ModernConfig, index: int) -> None:
        super().__init__()
        width = config.n_embd
        self.heads = config.n_head
        # Three matrices, so that Muon orthogonalizes each by itself.
        self.qkv = nn.Parameter(torch.empty(3, width, width))
        self.mix = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        bound = 3**0.5 * 0.5 * width**-0.5
        for matrix in (self.qkv, self.up.weight):
            nn.init.uniform_(matrix, -bound, bound)
        for matrix in (self.mix.weight, self.down.weight):
            nn.init.zeros_(matrix)
        if config.value_residual and index > 0:
            self.first_value = nn.Parameter(torch.tensor([0.5]))
        else:
            self.first_value = None

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], first: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the new residual stream [B, T, C] and the values [B, H, T, D]."""
        batch, length, width = x.shape
        joint = F.linear(norm(x), self.qkv.flatten(0, 1))
        heads = joint.view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind()
        if self.first_value is not None and first is not None:
            value = torch.lerp(value, first, self.first_value.to(value.dtype))
        query, key = rotate(norm(query), *rotation), rotate(norm(key), *rotation)
        mixed = causal_attention(query, key, value).transpose(1, 2)
        x = x + self.mix(mixed.reshape(batch, length, width))
        x = x + self.down(F.relu(self.up(norm(x))).square())
        return x, value


def norm(x: Tensor) -> Tensor:
    """Divide by the root mean square of the last dimension; there are no weights."""
    return F.rms_norm(x, (x.shape[-1],))


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate pairs of channels of x [B, H, T, D] by the angles of their positions [T, D/2]."""
    first, second = x.float().chunk(2, dim=-1)
    pair = (first * cosine + second * sine, second * cosine - first * sine)
    return torch.cat(pair, dim=-1).to(x.dtype)
