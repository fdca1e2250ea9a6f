"""Numbers of parameters and FLOPs: of a GPT-2 from its shape, of other models by counting."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from gpt2ckpt.config.schema import ModelConfig, ModelShape

if TYPE_CHECKING:
    from torch import nn

PARAMETERS_PER_LAYER = 12  # of a GPT-2 as tensors: four matrices and two norms, each with a bias


@dataclass(frozen=True)
class ModelSize:
    """The size of a model, for reports and estimates.

    Attributes:
        parts: Parameters by part; a tied parameter counts once.
        matrices: Parameters in the matrices of repeated layers.
        tensors: The number of parameter tensors, or an upper limit of it.
        buffers: Values in buffers that a checkpoint holds.
        flops_per_token: FLOPs per token of a forward and backward pass.
    """

    parts: dict[str, int]
    matrices: int
    tensors: int
    buffers: int
    flops_per_token: int

    @property
    def parameters(self) -> int:
        """Return the number of parameters."""
        return sum(self.parts.values())


def size_of(config: ModelShape) -> ModelSize:
    """Return the size of the model that `config` describes, without allocating its weights."""
    if not isinstance(config, ModelConfig):
        from gpt2ckpt.model.build import build_on_meta  # imports torch

        return measure(build_on_meta(config))
    return ModelSize(
        parts=asdict(count_parameters(config)),
        matrices=12 * config.n_layer * config.n_embd * config.n_embd,
        tensors=PARAMETERS_PER_LAYER * config.n_layer + 4,
        buffers=0,
        flops_per_token=count_flops_per_token(config),
    )


def measure(model: "nn.Module") -> ModelSize:
    """Return the size of a model of any kind.

    The FLOPs per token are 6 N (Kaplan et al. 2020, arXiv:2001.08361), where N excludes embeddings
    that are only looked up. The FLOPs of attention between tokens are not known here.
    """
    from torch import nn

    from gpt2ckpt.layers import hidden_matrices

    named = dict(model.named_parameters())
    parts: Counter[str] = Counter()
    for name, parameter in named.items():
        parts[name.partition(".")[0]] += parameter.numel()
    computed = {
        parameter
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    saved = model.state_dict()
    buffers = [saved[name] for name, _ in model.named_buffers() if name in saved]
    return ModelSize(
        parts=dict(parts),
        matrices=sum(matrix.numel() for matrix in hidden_matrices(model)),
        tensors=len(named),
        buffers=sum(buffer.numel() for buffer in buffers),
        flops_per_token=6 * sum(parameter.numel() for parameter in computed),
    )


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
