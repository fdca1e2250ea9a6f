"""GPT-2 (Radford et al. 2019), with the parameter names of nanoGPT and Hugging Face.

All matrices have the orientation of torch.nn.Linear, [out, in]. The output layer and the token
embedding are the same parameter.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from gpt2ckpt.config.checks import check_model
from gpt2ckpt.config.schema import ModelConfig
from gpt2ckpt.model.attention import KeyValueCache, LayerCache, causal_attention
from gpt2ckpt.model.loss import linear_cross_entropy

LAYER_NORM_EPS = 1e-5
INIT_STD = 0.02


class GPT2(nn.Module):
    """A GPT-2: `forward` maps token ids to logits, and `loss` computes the mean cross entropy.

    Raises:
        ConfigError: The shape is invalid.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        check_model(config)
        self.config = config
        self.transformer = Transformer(config)
        # On the meta device, because the embedding's weight replaces this weight.
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False, device="meta")
        self.lm_head.weight = self.transformer.wte.weight
        self.init_weights()

    def init_weights(self) -> None:
        """Initialize the weights with the global random generator.

        Matrices and embeddings are drawn from N(0, 0.02), biases are 0 and norms 1. Projections
        into the residual stream are drawn from N(0, 0.02 / sqrt(2 * n_layer)), because the paper
        scales their weights by the number of residual layers (section 2.3), as do Hugging Face and
        nanoGPT.
        OpenAI's code draws the position embedding from N(0, 0.01), and does not show the scaling.
        """
        residual_std = INIT_STD / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 1:
                nn.init.ones_(parameter)
            else:
                std = residual_std if name.endswith("c_proj.weight") else INIT_STD
                nn.init.normal_(parameter, mean=0.0, std=std)

    def hidden(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """Return the hidden states after the last norm.

        Args:
            tokens: Token ids, int64 of shape [B, T].
            cache: The keys and values of the tokens before `tokens`; `tokens` are added.

        Returns:
            A tensor of shape [B, T, C].

        Raises:
            ValueError: There are more than block_size tokens.
        """
        hidden: Tensor = self.transformer(tokens, cache)
        return hidden

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits, [B, T, V], for token ids [B, T] (int64)."""
        logits: Tensor = self.lm_head(self.hidden(tokens))
        return logits

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy in nats per token, a float32 scalar.

        The complete logits are never in memory; `linear_cross_entropy` limits the backward pass.

        Args:
            tokens: Token ids, int64 of shape [B, T].
            targets: The next tokens, int64 of shape [B, T].
        """
        hidden = self.hidden(tokens).flatten(0, 1)
        loss: Tensor = linear_cross_entropy(hidden, self.lm_head.weight, targets.flatten())
        return loss


class Transformer(nn.Module):
    """The embeddings, the transformer blocks and the last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = layer_norm(config)

    def forward(self, tokens: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        start = cache.length if cache else 0
        end, limit = start + tokens.shape[1], self.wpe.num_embeddings
        if end > limit:
            raise ValueError(f"{end} tokens do not fit into the context of {limit} tokens")
        # A slice instead of a lookup: all rows have the same positions.
        x = self.drop(self.wte(tokens) + self.wpe.weight[start:end])
        for index, block in enumerate(self.h):
            x = block(x, cache.layers[index] if cache else None)
        if cache:
            cache.length = end
        hidden: Tensor = self.ln_f(x)
        return hidden


class Block(nn.Module):
    """A transformer block: attention and MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = layer_norm(config)
        self.attn = Attention(config)
        self.ln_2 = layer_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache)
        x = x + self.mlp(self.ln_2(x))
        return x


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        batch, length, width = x.shape
        heads = self.c_attn(x).view(batch, length, 3, self.n_head, width // self.n_head)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind()  # each [B, H, T, D], views
        if cache is not None:
            key, value = cache.extend(key, value)
        dropout = self.dropout if self.training else 0.0
        mixed = causal_attention(query, key, value, dropout)
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        projected: Tensor = self.resid_dropout(self.c_proj(mixed))
        return projected


class MLP(nn.Module):
    """Two linear layers with a hidden width of 4 C, and GELU, which GPT-2 approximates by tanh."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.approximate = "tanh" if config.gelu == "tanh" else "none"
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.c_fc(x), approximate=self.approximate)
        x = self.dropout(self.c_proj(x))
        return x


def layer_norm(config: ModelConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS, bias=config.bias)
