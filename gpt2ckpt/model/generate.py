"""Text generation, one token at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gpt2ckpt.config.schema import END_OF_TEXT, VOCAB_SIZE
from gpt2ckpt.model.attention import KeyValueCache
from gpt2ckpt.model.gpt2 import GPT2


@torch.no_grad()
def generate(
    model: nn.Module,
    tokens: Tensor,
    max_tokens: int,
    *,
    block_size: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    stop_token: int | None = END_OF_TEXT,
    stop: Callable[[], bool] = lambda: False,
) -> list[list[int]]:
    """Continue each row of `tokens` by up to `max_tokens` tokens.

    Dropout is off during the generation. The global random generator is not used, since it belongs
    to the training.

    A GPT-2 computes one position per token, since it has a key/value cache. Texts longer than
    block_size are continued with a sliding window: once block_size tokens are cached, the last half
    of them is computed again at the positions from 0. Learned positions do not allow shifting the
    cached keys; half a block of context makes such a step rare. Other models compute the last
    block_size tokens again for each token.

    Args:
        model: The model; its training mode is restored.
        tokens: The prompts, int64 of shape [B, T] with T >= 1.
        max_tokens: Most new tokens of each row.
        block_size: The largest number of tokens that the model accepts.
        temperature: Divides the logits; 0 takes the most likely token.
        top_k: Number of most likely tokens to draw from; None for all.
        generator: A CPU generator; None for one with a fixed seed.
        stop_token: A token that ends its row.
        stop: Called before each token; generation ends once it returns true.

    Returns:
        The new tokens of each row, without the stop token.
    """
    generator = generator or torch.Generator().manual_seed(0)
    predict = _Cached(model, block_size) if isinstance(model, GPT2) else None
    text = tokens
    with evaluating(model):
        for _ in range(max_tokens):
            if stop():
                break
            logits = predict(text) if predict else model(text[:, -block_size:])[:, -1]
            # Logits beyond GPT-2's vocabulary are padding.
            chosen = choose(logits[:, :VOCAB_SIZE], temperature, top_k, generator)
            text = torch.cat((text, chosen), dim=1)
            if stop_token is not None and _all_stopped(text[:, tokens.shape[1] :], stop_token):
                break
    return [_until(row, stop_token) for row in text[:, tokens.shape[1] :].tolist()]


class _Cached:
    """Computes the logits of a growing text's next token, with a key/value cache."""

    def __init__(self, model: GPT2, block_size: int) -> None:
        self._model, self._block_size = model, block_size
        self._cache = KeyValueCache(model.config.n_layer, block_size)
        self._length = 0  # of the text that the cache continues

    def __call__(self, text: Tensor) -> Tensor:
        fresh = text[:, max(self._length, text.shape[1] - self._block_size) :]
        if self._cache.length + fresh.shape[1] > self._block_size:
            self._cache.clear()
            fresh = text[:, -max(self._block_size // 2, 1) :]
        self._length = text.shape[1]
        logits: Tensor = self._model.lm_head(self._model.hidden(fresh, self._cache)[:, -1])
        return logits


def choose(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator
) -> Tensor:
    """Return one token for each row of logits [B, V]: int64 of shape [B, 1], on their device."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    # On the CPU in float32, so that the same logits give the same draws on every device.
    scores = logits.float().cpu()
    tokens = None
    if top_k is not None and top_k < scores.shape[-1]:
        scores, tokens = scores.topk(top_k)
    # At most zero, so that a tiny temperature does not overflow.
    scores = (scores - scores.amax(-1, keepdim=True)) / temperature
    drawn = torch.multinomial(scores.softmax(-1), 1, generator=generator)
    return (drawn if tokens is None else tokens.gather(1, drawn)).to(logits.device)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off for a `with` block, and restore the training mode."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _all_stopped(new: Tensor, stop_token: int) -> bool:
    return bool((new == stop_token).any(1).all())


def _until(row: list[int], stop_token: int | None) -> list[int]:
    return row[: row.index(stop_token)] if stop_token in row else row
