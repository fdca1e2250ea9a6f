"""Numbers of parameters and FLOPs of a GPT-2, computed from its shape."""

from dataclasses import dataclass

from gpt2ckpt.config.schema import ModelConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by part; the token embedding is also the output layer, and counts once."""

    embedding: int
    position: int
    attention: int
    mlp: int
    norm: int

    @property
    def total(self) -> int:
        return self.embedding + self.position + self.attention + self.mlp + self.norm


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Return the parameters of the model that `config` describes, without building it."""
    width, layers, bias = config.n_embd, config.n_layer, int(config.bias)
    return ParameterCounts(
        embedding=config.vocab_size * width,
        position=config.block_size * width,
        attention=layers * (4 * width * width + bias * 4 * width),
        mlp=layers * (8 * width * width + bias * 5 * width),
        norm=(2 * layers + 1) * (1 + bias) * width,
    )


def count_flops_per_token(config: ModelConfig) -> int:
    """Return the FLOPs per token of a forward and backward pass: 6 N + 12 L H Q T.

    Source: PaLM (Chowdhery et al. 2022, arXiv:2204.02311), appendix B, with N parameters, L layers,
    H heads of dimension Q and T tokens of context. As usual for GPT-2, N excludes the position
    embedding, which is only added, and includes the token embedding, which is also the matrix of
    the output layer. Attention counts as if every token attended to the complete block.
    """
    counts = count_parameters(config)
    parameters = counts.total - counts.position
    return 6 * parameters + 12 * config.n_layer * config.n_embd * config.block_size
