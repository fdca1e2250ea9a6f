"""The chunked loss equals the plain loss."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2ckpt.model import loss as loss_module
from gpt2ckpt.model.loss import linear_cross_entropy

ROWS, WIDTH, WORDS = 37, 24, 301


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, WIDTH, generator=generator, requires_grad=True)
    weight = (torch.randn(WORDS, WIDTH, generator=generator) / 4).requires_grad_()
    return hidden, weight, torch.randint(WORDS, (ROWS,), generator=generator)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    loss = F.cross_entropy(F.linear(hidden, weight), targets)
    return (loss, *torch.autograd.grad(loss, (hidden, weight)))


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("chunk_rows", [1, 8, 36, 37, 1000, None])
def test_chunked_float32_loss_equals_plain_loss(chunk_rows: int | None) -> None:
    hidden, weight, targets = problem()
    expected = plain(hidden, weight, targets)
    loss = linear_cross_entropy(hidden, weight, targets, chunk_rows)
    found = (loss, *torch.autograd.grad(loss, (hidden, weight)))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("product_words", [64, 4096])
def test_chunked_loss_under_autocast_is_within_rounding(
    dtype: torch.dtype, product_words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "PRODUCT_TOKENS", product_words)
    hidden, weight, targets = problem()
    expected = plain(hidden, weight, targets)
    with torch.autocast("cpu", dtype):
        loss = linear_cross_entropy(hidden, weight, targets, 20)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    assert loss.dtype == gradients[0].dtype == gradients[1].dtype == torch.float32
    # 2^-9 is half a unit in the last place of bfloat16
    assert relative(loss, expected[0]) < 2**-9
    assert relative(gradients[0], expected[1]) < 2**-7
    assert relative(gradients[1], expected[2]) < 2**-7


def test_16_bit_weights_get_16_bit_gradients() -> None:
    hidden, weight, targets = problem()
    expected = plain(hidden, weight, targets)
    small = [t.detach().bfloat16().requires_grad_() for t in (hidden, weight)]
    loss = linear_cross_entropy(small[0], small[1], targets, 20)
    gradients = torch.autograd.grad(loss, small)
    assert loss.dtype == torch.float32
    assert gradients[0].dtype == gradients[1].dtype == torch.bfloat16
    assert relative(gradients[1], expected[2]) < 2**-6


def test_loss_scale_reaches_gradients_without_underflow() -> None:
    # In float16, softmax / ROWS would become zero for most tokens without the scale.
    hidden, weight, targets = problem()
    expected = plain(hidden, weight, targets)
    with torch.autocast("cpu", torch.float16):
        loss = linear_cross_entropy(hidden, weight, targets)
    (loss * 2.0**24).backward()
    assert hidden.grad is not None and weight.grad is not None
    assert relative(hidden.grad / 2.0**24, expected[1]) < 2**-8
    assert relative(weight.grad / 2.0**24, expected[2]) < 2**-8


def test_no_gradient_is_computed_unless_required(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = problem()
    expected = plain(hidden, weight, targets)[0]
    with monkeypatch.context() as patch:
        patch.delattr(loss_module, "_WeightGradient")
        with torch.no_grad():
            loss = linear_cross_entropy(hidden, weight, targets, 8)
        frozen = linear_cross_entropy(hidden, weight.detach(), targets, 8)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(frozen, expected)


def test_tied_weight_sums_both_gradients() -> None:
    _, weight, targets = problem()
    inputs = targets.roll(1)

    def gradient(chunked: bool) -> Tensor:
        hidden = F.embedding(inputs, weight)
        if chunked:
            loss = linear_cross_entropy(hidden, weight, targets, 8)
        else:
            loss = F.cross_entropy(F.linear(hidden, weight), targets)
        return torch.autograd.grad(loss, weight)[0]

    torch.testing.assert_close(gradient(True), gradient(False), rtol=1e-4, atol=1e-7)


def test_extreme_logits_give_finite_loss() -> None:
    hidden, weight, targets = problem()
    big = (hidden.detach() * 300).requires_grad_()
    expected = plain(big, weight, targets)
    loss = linear_cross_entropy(big, weight, targets)
    torch.testing.assert_close(loss, expected[0])
    assert expected[0] > 100


def test_nan_propagates_to_loss() -> None:
    hidden, weight, targets = problem()
    broken = hidden.detach().clone()
    broken[3, 3] = float("nan")
    assert linear_cross_entropy(broken, weight, targets, 8).isnan()


def test_loss_is_bitwise_repeatable() -> None:
    def run() -> list[Tensor]:
        hidden, weight, targets = problem()
        with torch.autocast("cpu", torch.bfloat16):
            loss = linear_cross_entropy(hidden, weight, targets, 16)
        return [loss, *torch.autograd.grad(loss, (hidden, weight))]

    for one, other in zip(run(), run(), strict=True):
        assert torch.equal(one, other)


def test_second_backward_pass_is_refused() -> None:
    hidden, weight, targets = problem()
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()
