"""The shapes that are measured: the default model, one between, and GPT-2 124M."""

from dataclasses import dataclass

from gpt2ckpt.config.schema import ModelConfig


@dataclass(frozen=True)
class Shape:
    """A model and a micro-batch; `steps` are timed after `warmup` others."""

    model: ModelConfig
    batch_size: int
    steps: int
    warmup: int = 2

    @property
    def tokens(self) -> int:
        """Tokens in one step."""
        return self.batch_size * self.model.block_size


def _model(n_layer: int, n_head: int, n_embd: int, block_size: int) -> ModelConfig:
    return ModelConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size)


SHAPES = {
    "nano": Shape(_model(4, 4, 128, 128), batch_size=8, steps=12),
    "6x384": Shape(_model(6, 6, 384, 256), batch_size=8, steps=4),
    "124M": Shape(_model(12, 12, 768, 256), batch_size=2, steps=4),
}
