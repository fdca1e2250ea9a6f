"""The measured shapes: the default model, one between, and GPT-2 124M."""

from dataclasses import dataclass

THREADS = 2


@dataclass(frozen=True)
class Shape:
    """A model and its batch; `steps` steps are timed after `warm_up` others."""

    n_layer: int
    n_head: int
    n_embd: int
    context: int
    batch: int
    steps: int
    warm_up: int = 2

    @property
    def tokens(self) -> int:
        """Tokens in one step."""
        return self.batch * self.context

    @property
    def overrides(self) -> list[str]:
        """Overrides of `python -m gpt2ckpt.train` that train this shape on a CPU."""
        return [
            *(f"model.n_layer={self.n_layer}", f"model.n_head={self.n_head}"),
            *(f"model.n_embd={self.n_embd}", f"model.block_size={self.context}"),
            *(f"trainer.batch_size={self.batch}", f"trainer.threads={THREADS}"),
            "trainer.device=cpu",
        ]


SHAPES = {
    "nano": Shape(4, 4, 128, context=128, batch=8, steps=10, warm_up=3),
    "6x384": Shape(6, 6, 384, context=256, batch=8, steps=3),
    "124M": Shape(12, 12, 768, context=256, batch=2, steps=3),
}
