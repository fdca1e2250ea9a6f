"""The model: sizes, names, initialization, causality and loss."""

import math

import pytest
import torch
import torch.nn.functional as F

from gpt2ckpt.config.schema import ModelConfig
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.model.counts import count_flops_per_token, count_parameters
from gpt2ckpt.model.gpt2 import GPT2

PUBLISHED = {
    124_439_808: ModelConfig(n_layer=12, n_head=12, n_embd=768, block_size=1024),
    354_823_168: ModelConfig(n_layer=24, n_head=16, n_embd=1024, block_size=1024),
    774_030_080: ModelConfig(n_layer=36, n_head=20, n_embd=1280, block_size=1024),
    1_557_611_200: ModelConfig(n_layer=48, n_head=25, n_embd=1600, block_size=1024),
}
TINY = ModelConfig(n_layer=3, n_head=3, n_embd=21, block_size=11, vocab_size=97)


def meta_model(config: ModelConfig) -> GPT2:
    with torch.device("meta"):
        return GPT2(config)


def tokens_of(config: ModelConfig, batch: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (batch, config.block_size), generator=generator)


@pytest.mark.parametrize("expected", PUBLISHED)
def test_published_parameter_counts(expected: int) -> None:
    model = meta_model(PUBLISHED[expected])
    assert count_parameters(model.config).total == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("bias", [True, False])
def test_counts_by_part_match_the_parameters(bias: bool) -> None:
    model = meta_model(ModelConfig(2, 2, 10, 7, 31, bias=bias))
    parts = {
        "embedding": "wte",
        "position": "wpe",
        "attention": ".attn.",
        "mlp": ".mlp.",
        "norm": "ln_",
    }
    counts = count_parameters(model.config)
    for part, mark in parts.items():
        found = sum(p.numel() for name, p in model.named_parameters() if mark in name)
        assert getattr(counts, part) == found, part


def test_parameter_names_orientation_and_tying() -> None:
    model = GPT2(TINY)
    state = model.state_dict()
    layer = {"ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
    expected = {"transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"}
    modules = {f"transformer.h.{i}.{name}" for i in range(3) for name in layer}
    for module in modules | {"transformer.ln_f"}:
        expected |= {f"{module}.weight", f"{module}.bias"}
    assert set(state) == expected
    assert state["transformer.h.0.attn.c_attn.weight"].shape == (63, 21)
    assert state["transformer.h.0.mlp.c_fc.weight"].shape == (84, 21)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_bias_false_has_no_bias() -> None:
    names = meta_model(ModelConfig(2, 2, 8, 4, 16, bias=False)).state_dict()
    assert not [name for name in names if name.endswith("bias")]


def test_initial_weights_have_the_published_distribution() -> None:
    torch.manual_seed(0)
    model = GPT2(ModelConfig(n_layer=8, n_head=4, n_embd=128, block_size=64, vocab_size=500))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif ".ln_" in name:
            assert (parameter == 1).all(), name
        else:
            expected = 0.02 / math.sqrt(16) if "c_proj" in name else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(parameter.mean().item()) < expected / 10, name


def test_attention_is_causal() -> None:
    model = GPT2(TINY).eval()
    tokens = tokens_of(TINY)
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % TINY.vocab_size
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_loss_and_gradients_equal_cross_entropy_of_logits() -> None:
    model = GPT2(TINY)
    tokens, targets = tokens_of(TINY), tokens_of(TINY, seed=2)
    plain = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())
    plain.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss = model.loss(tokens, targets)
    loss.backward()
    torch.testing.assert_close(loss, plain)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7)


def test_dropout_is_active_in_training_only() -> None:
    model = GPT2(ModelConfig(2, 2, 16, 8, 50, dropout=0.5))
    tokens = tokens_of(model.config)
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_flops_per_token_of_the_small_model() -> None:
    # By hand: 6 * (124,439,808 - 1024 * 768) + 12 * 12 * 768 * 1024
    assert count_flops_per_token(PUBLISHED[124_439_808]) == 855_166_464


def test_more_tokens_than_block_size_are_refused() -> None:
    with pytest.raises(ValueError, match="12 tokens do not fit into the context of 11"):
        GPT2(TINY)(torch.zeros(1, 12, dtype=torch.int64))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (ModelConfig(n_head=5), r"model.n_embd=128 is not divisible by model.n_head=5"),
        (ModelConfig(n_layer=0), r"model.n_layer is 0; it must be at least 1"),
        (ModelConfig(dropout=1.0), r"model.dropout is .*; it must be at least 0 and below 1"),
    ],
)
def test_impossible_shapes_are_config_errors(config: ModelConfig, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        GPT2(config)
