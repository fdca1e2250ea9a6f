"""Generation: the cache does not change the text, and global random state is kept."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpt2ckpt.config.schema import ModelConfig
from gpt2ckpt.model.attention import KeyValueCache
from gpt2ckpt.model.generate import generate
from gpt2ckpt.model.gpt2 import GPT2

CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=60)


@pytest.fixture
def model() -> GPT2:
    torch.manual_seed(3)
    model = GPT2(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # so that greedy text does not repeat a single token
    return model


def prompt(batch: int, length: int) -> Tensor:
    return torch.randint(60, (batch, length), generator=torch.Generator().manual_seed(5))


def continued(model: nn.Module, tokens: Tensor, count: int, **options: Any) -> list[list[int]]:
    return generate(model, tokens, count, block_size=CONFIG.block_size, **options)


def greedy_without_cache(model: GPT2, tokens: Tensor, count: int) -> list[list[int]]:
    """Return the greedy text of the documented windows, computing all positions for each token."""
    text, start, block = tokens, max(tokens.shape[1] - CONFIG.block_size, 0), CONFIG.block_size
    for _ in range(count):
        if text.shape[1] - start > block:
            start = text.shape[1] - block // 2
        text = torch.cat((text, model(text[:, start:])[:, -1].argmax(-1, keepdim=True)), dim=1)
    return text[:, tokens.shape[1] :].tolist()


@pytest.mark.parametrize("length", [1, 5, 12, 20])
def test_cache_does_not_change_generated_tokens(model: GPT2, length: int) -> None:
    tokens = prompt(3, length)
    expected = greedy_without_cache(model.eval(), tokens, 30)
    assert continued(model, tokens, 30, temperature=0, stop_token=None) == expected
    assert len({token for row in expected for token in row}) > 10


def test_cache_accepts_several_tokens_at_a_time(model: GPT2) -> None:
    tokens = prompt(2, 12)
    cache = KeyValueCache(CONFIG.n_layer, CONFIG.block_size)
    parts = [model.hidden(part, cache) for part in tokens.split([4, 1, 5, 2], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model.hidden(tokens), rtol=1e-4, atol=1e-5)


class Uncached(nn.Module):
    """A model that only maps tokens to logits, without a cache."""

    def __init__(self, inner: GPT2) -> None:
        super().__init__()
        self.inner = inner
        self.lengths: list[int] = []

    def forward(self, tokens: Tensor) -> Tensor:
        assert not self.training
        self.lengths.append(tokens.shape[1])
        logits: Tensor = self.inner(tokens)
        return logits


def test_model_without_cache_sees_the_last_block_of_the_text(model: GPT2) -> None:
    tokens = prompt(3, 5)
    uncached = Uncached(model)
    rows = continued(uncached, tokens, 10, temperature=0, stop_token=None)
    assert uncached.lengths == [5, 6, 7, 8, 9, 10, 11, 12, 12, 12]
    assert [row[:8] for row in rows] == continued(model, tokens, 8, temperature=0, stop_token=None)
    last = torch.tensor(rows)[:, :9]
    window = torch.cat((tokens, last), dim=1)[:, -12:]
    assert [row[9] for row in rows] == model(window)[:, -1].argmax(-1).tolist()


def test_same_seed_generates_same_text(model: GPT2) -> None:
    def text(seed: int, **options: float) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return continued(model, prompt(2, 4), 20, generator=generator, **options)

    assert text(1) == text(1) != text(2)
    assert text(1, temperature=0.5, top_k=5) == text(1, temperature=0.5, top_k=5)


def test_generation_keeps_global_generator_and_mode(model: GPT2) -> None:
    before = torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        continued(model, prompt(1, 4), 8)
        assert model.training == training
    assert torch.equal(before, torch.get_rng_state())


def test_top_k_and_temperature_shape_the_distribution(model: GPT2) -> None:
    tokens = prompt(4, 4)
    greedy = continued(model, tokens, 6, temperature=0)
    assert continued(model, tokens, 6, temperature=2.0, top_k=1) == greedy
    assert continued(model, tokens, 6, temperature=1e-42) == greedy


def test_each_row_ends_before_its_stop_token(model: GPT2) -> None:
    tokens = prompt(3, 4)
    whole = continued(model, tokens, 20, temperature=0, stop_token=None)
    stop = whole[0][2]
    rows = continued(model, tokens, 20, temperature=0, stop_token=stop)
    for row, full in zip(rows, whole, strict=True):
        assert row == (full[: full.index(stop)] if stop in full else full)
    assert len(rows[0]) < 20


def test_padded_vocabulary_is_never_drawn() -> None:
    model = GPT2(ModelConfig(1, 1, 4, 4, vocab_size=50_304))
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(1)
        model.transformer.wte.weight[50_257:] = 5
    (row,) = generate(model, torch.zeros(1, 1, dtype=torch.int64), 5, block_size=4, temperature=0)
    assert len(row) == 5 and max(row) < 50_257


def test_generation_works_under_autocast(model: GPT2) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        (row,) = continued(model, prompt(1, 4), 20, temperature=0, stop_token=None)
    assert len(row) == 20
