"""Models of plugins: what is built, which loss is trained, and errors that name the plugin."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpt2ckpt.config.options import OPTIONS, Option, PluginError
from gpt2ckpt.config.schema import ModelConfig
from gpt2ckpt.model.build import build_model, build_on_meta, loss_of, with_named_errors
from gpt2ckpt.model.gpt2 import GPT2

NAME = "model 'own' (plugin my_model)"
TOKENS = torch.zeros(2, 3, dtype=torch.int64)


@dataclass
class OwnConfig:
    block_size: int = 4
    vocab_size: int = 5


class Logits(nn.Module):
    """A model whose logits are `reply` of the tokens."""

    def __init__(self, reply: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 5)
        self.reply = reply

    def forward(self, tokens: Tensor) -> Tensor:
        return self.reply(self.embed(tokens))


def register(monkeypatch: pytest.MonkeyPatch, build: Callable[[Any], Any]) -> OwnConfig:
    option = Option("model", "own", OwnConfig, build, "my_model")
    monkeypatch.setitem(OPTIONS["model"], "own", option)
    return OwnConfig()


def test_builder_that_raises_or_returns_no_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    config = register(monkeypatch, lambda config: 1 / 0)
    with pytest.raises(PluginError) as raised:
        build_on_meta(config)
    assert str(raised.value).startswith(f"{NAME} raised ZeroDivisionError: division by zero")
    config = register(monkeypatch, lambda config: [nn.Linear(1, 1)])
    with pytest.raises(PluginError) as raised:
        build_model(config)
    assert str(raised.value).startswith(f"{NAME}: the builder returned a list; it must return a ")


def test_model_that_computes_values_in_its_constructor_can_be_built_on_meta(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = register(monkeypatch, lambda config: nn.Dropout(torch.linspace(0, 1, 3)[1].item()))
    assert build_on_meta(config).p == 0.5


def test_loss_is_that_of_the_model_or_the_cross_entropy_of_its_logits() -> None:
    model = GPT2(ModelConfig(1, 1, 4, 4, 5)).eval()
    own = loss_of(model)(TOKENS, TOKENS)
    of_logits = loss_of(Logits(lambda hidden: hidden))
    assert own == model.loss(TOKENS, TOKENS)

    class Plain(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = model(tokens)
            return logits

    torch.testing.assert_close(loss_of(Plain())(TOKENS, TOKENS), own)
    assert of_logits(TOKENS, TOKENS).requires_grad


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (lambda hidden: hidden[:, 0], " raised ValueError: it maps tokens of shape [2, 3] to a "
         "tensor of shape [2, 5]; logits have the shape [batch, tokens, vocabulary]"),
        (lambda hidden: hidden @ torch.ones(4), " raised RuntimeError: "),
        (lambda hidden: {}["logits"], " raised KeyError: 'logits'"),
    ],
)  # fmt: skip
def test_model_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, reply: Callable[[Tensor], Tensor], message: str
) -> None:
    config = register(monkeypatch, lambda config: Logits(reply))
    with pytest.raises(PluginError) as raised:
        with_named_errors(config, loss_of(build_model(config)))(TOKENS, TOKENS)
    assert f"{NAME}{message}" in str(raised.value)


def test_loss_that_is_not_a_scalar_is_refused_and_exhausted_memory_keeps_its_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = register(monkeypatch, lambda config: Logits(lambda hidden: hidden))
    with pytest.raises(PluginError, match=r"its loss has the shape \[2, 3\]; it must be a scalar"):
        with_named_errors(config, lambda tokens, targets: tokens.float())(TOKENS, TOKENS)

    def exhausted(tokens: Tensor, targets: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        with_named_errors(config, exhausted)(TOKENS, TOKENS)
