"""Text from a model, one token at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gpt2ckpt.config.schema import END_OF_TEXT, VOCAB_SIZE
from gpt2ckpt.model.cache import KeyValueCache
from gpt2ckpt.model.gpt2 import GPT2


@torch.no_grad()
def generate(
    model: GPT2,
    tokens: Tensor,
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
    stop_token: int | None = END_OF_TEXT,
    stop: Callable[[], bool] = lambda: False,
) -> list[list[int]]:
    """Continue each row of `tokens`, [B, T] int64 with T >= 1, by up to `max_tokens` tokens.

    Returns the new tokens of each row, without the stop token that ended it. Temperature 0 takes
    the likeliest token. Otherwise tokens are drawn with `generator`, of the CPU, or with one of a
    fixed seed: never with the global one, which belongs to the training. Dropout is off meanwhile.
    Ends early once `stop` says so.

    A text longer than the block is seen through a window: once block_size tokens are cached, the
    last half of them is fed again, at the positions from 0 on. Positions are learned, so that
    cached keys cannot just be shifted; feeding half makes that rare and keeps a context.
    """
    generator = generator or torch.Generator().manual_seed(0)
    block = model.config.block_size
    text = tokens
    cache = KeyValueCache(model.config.n_layer, block)
    with evaluating(model):
        fresh = tokens[:, -block:]
        for _ in range(max_tokens):
            if stop():
                break
            if cache.length + fresh.shape[1] > block:
                cache.clear()
                fresh = text[:, -max(block // 2, 1) :]
            logits = model.lm_head(model.hidden(fresh, cache)[:, -1])
            # What a model has beyond GPT-2's vocabulary is padding, and not a token.
            fresh = choose(logits[:, :VOCAB_SIZE], temperature, top_k, generator)
            text = torch.cat((text, fresh), dim=1)
            if stop_token is not None and _all_stopped(text[:, tokens.shape[1] :], stop_token):
                break
    return [_until(row, stop_token) for row in text[:, tokens.shape[1] :].tolist()]


def choose(
    logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator
) -> Tensor:
    """One token for each row of logits [B, V]: [B, 1], int64, on the same device."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    # On the CPU, in float32: one generator gives the same draws from the same logits anywhere.
    scores = logits.float().cpu()
    words = None
    if top_k is not None and top_k < scores.shape[-1]:
        scores, words = scores.topk(top_k)
    # Below zero, so that a tiny temperature does not overflow.
    scores = (scores - scores.amax(-1, keepdim=True)) / temperature
    drawn = torch.multinomial(scores.softmax(-1), 1, generator=generator)
    return (drawn if words is None else words.gather(1, drawn)).to(logits.device)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off for the block; the mode that was there comes back."""
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
