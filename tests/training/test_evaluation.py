"""The validation loss equals that of transformers over the same blocks."""

import math

import numpy as np
import pytest
import torch
from training_helpers import differing
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2ckpt.config.schema import ModelConfig
from gpt2ckpt.data.loader import validation
from gpt2ckpt.data.tokens import Piece, TokenStream
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.training.evaluation import Evaluation, evaluate
from gpt2ckpt.training.hardware import choose_hardware
from gpt2ckpt.training.rng import capture_generators

SHAPE = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=24, vocab_size=64, dropout=0.1)
TOKENS = np.random.default_rng(3).integers(0, 64, 23 * 24 + 1 + 5).astype(np.uint16)
STREAM = TokenStream([Piece("tokens", TOKENS)], 64)
HARDWARE = choose_hardware("cpu", "float32", 1)
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "c_fc.weight", "mlp.c_proj.weight")


def trained_model() -> GPT2:
    """Return a trained model, whose distribution is not uniform."""
    torch.manual_seed(4)
    model = GPT2(SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model


def losses_of_transformers(model: GPT2) -> list[float]:
    """Return the loss that transformers itself computes for each token block."""
    names = {"n_positions": 24, "n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 64}
    theirs = GPT2LMHeadModel(GPT2Config(**names, bos_token_id=0, eos_token_id=0)).eval()
    weights = {
        name: weight.t() if name.endswith(TRANSPOSED) else weight
        for name, weight in model.state_dict().items()
    }
    theirs.load_state_dict(weights, strict=False)
    losses = []
    for block in range(23):
        inputs = torch.from_numpy(TOKENS[block * 24 : block * 24 + 24].astype(np.int64))[None]
        targets = torch.from_numpy(TOKENS[block * 24 + 1 : block * 24 + 25].astype(np.int64))
        with torch.no_grad():
            logits = theirs(inputs).logits[0]
        losses.append(float(torch.nn.functional.cross_entropy(logits, targets)))
    return losses


def evaluated(model: GPT2, batch_size: int, limit: int | None = None) -> Evaluation:
    batches = validation(STREAM, 24, batch_size, limit)
    result = evaluate(model, batches, HARDWARE, stop=lambda: False)
    assert result is not None
    return result


def test_loss_equals_transformers_on_same_blocks() -> None:
    model = trained_model()
    theirs = losses_of_transformers(model)
    assert (
        max(theirs) - min(theirs) > 0.3
    )  # the losses of the blocks differ, so their weights matter
    result = evaluated(model, 8)
    assert result.loss == pytest.approx(sum(theirs) / 23, abs=1e-5)
    assert result.tokens == 23 * 24
    assert evaluated(model, 8, limit=5).loss == pytest.approx(sum(theirs[:5]) / 5, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 22, 100])
def test_loss_does_not_depend_on_batch_size(batch_size: int) -> None:
    """With 23 blocks, the last batch is smaller and must have less weight than the others."""
    model = trained_model()
    expected = evaluated(model, 23)
    result = evaluated(model, batch_size)
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)
    assert result.tokens == expected.tokens


def test_evaluation_draws_no_random_numbers_and_restores_mode() -> None:
    model = trained_model()
    for training in (True, False):
        model.train(training)
        before = capture_generators()
        first, second = evaluated(model, 4), evaluated(model, 4)
        assert first == second  # without dropout
        assert model.training is training
        assert differing(before, capture_generators()) == []
    assert all(parameter.grad is None for parameter in model.parameters())


def test_evaluation_can_be_stopped() -> None:
    model = trained_model()
    answers = iter([False, False, True])
    assert evaluate(model, validation(STREAM, 24, 4), HARDWARE, lambda: next(answers)) is None
    assert model.training
    with pytest.raises(
        StopIteration
    ):  # `stop` was called before each of three batches, and then no more
        next(answers)


def test_uniform_model_has_entropy_of_vocabulary() -> None:
    model = trained_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert evaluated(model, 4).loss == pytest.approx(math.log(64), rel=1e-6)
