"""How many parameters a GPT-2 has, and how much arithmetic it asks for: from its shape alone."""

from dataclasses import dataclass

from gpt2ckpt.config.schema import ModelConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by part; `embedding` is also the output layer, and counts once."""

    embedding: int
    position: int
    attention: int
    mlp: int
    norm: int

    @property
    def total(self) -> int:
        return self.embedding + self.position + self.attention + self.mlp + self.norm


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Parameters of the model that `config` describes, without building it."""
    width, layers, bias = config.n_embd, config.n_layer, int(config.bias)
    return ParameterCounts(
        embedding=config.vocab_size * width,
        position=config.block_size * width,
        attention=layers * (4 * width * width + bias * 4 * width),
        mlp=layers * (8 * width * width + bias * 5 * width),
        norm=(2 * layers + 1) * (1 + bias) * width,
    )


def count_flops_per_token(config: ModelConfig) -> int:
    """Floating-point operations of training (forward and backward) per token: 6 N + 12 L H Q T.

    PaLM (Chowdhery et al. 2022, arXiv:2204.02311), appendix B: N parameters, L layers, H heads of
    dimension Q, T tokens of context (a full block). As usual for GPT-2, N leaves out the position
    embedding, which is only added; the word embedding counts, for it is the output layer's matrix.
    The causal mask is not credited: attention counts as if every token saw the whole block.
    """
    counts = count_parameters(config)
    parameters = counts.total - counts.position
    return 6 * parameters + 12 * config.n_layer * config.n_embd * config.block_size
