"""Both implementations of attention agree, and training selects the intended one."""

import pytest
import torch
from torch import Tensor

from gpt2ckpt.model import attention
from gpt2ckpt.model.attention import MAX_KEPT_LENGTH, causal_attention

SHAPE = (2, 3, 24, 16)  # blocks, heads, tokens, width


def parts(dtype: torch.dtype) -> list[Tensor]:
    """Return query, key and value as in training: views of one tensor, not contiguous."""
    torch.manual_seed(0)
    batch, heads, length, width = SHAPE
    joint = torch.randn(batch, length, 3, heads, width).to(dtype).requires_grad_()
    return list(joint.permute(2, 0, 3, 1, 4).unbind())


def with_gradients(way: object, dtype: torch.dtype) -> list[Tensor]:
    tensors = parts(dtype)
    mixed = way(*tensors, 0.0)  # type: ignore[operator]
    weights = torch.linspace(-1, 1, mixed.numel()).view_as(mixed).to(dtype)
    return [mixed, *torch.autograd.grad((mixed * weights).sum(), tensors)]


def test_matrix_products_equal_fused_kernel() -> None:
    kept = with_gradients(attention._by_products, torch.float32)
    for one, other in zip(kept, with_gradients(causal_attention, torch.float32), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_training_in_bfloat16_is_near_float32() -> None:
    exact = with_gradients(causal_attention, torch.float32)
    for one, other in zip(with_gradients(causal_attention, torch.bfloat16), exact, strict=True):
        assert (one.float() - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize(
    ("dtype", "length", "grad", "kept"),
    [
        (torch.bfloat16, 8, True, True),
        (torch.bfloat16, MAX_KEPT_LENGTH, True, True),
        (torch.bfloat16, MAX_KEPT_LENGTH + 1, True, False),
        (torch.bfloat16, 8, False, False),
        (torch.float32, 8, True, False),
    ],
)
def test_attention_weights_are_kept_in_bfloat16_on_cpu_only(
    dtype: torch.dtype, length: int, grad: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    way = attention._by_products
    monkeypatch.setattr(attention, "_by_products", lambda *a: calls.append(1) or way(*a))
    tensor = torch.randn(1, 1, length, 4).to(dtype)
    with torch.set_grad_enabled(grad):
        causal_attention(tensor, tensor, tensor)
    assert bool(calls) == kept


def test_attention_dropout_scales_remaining_weights() -> None:
    torch.manual_seed(0)
    query = torch.zeros(64, 1, 8, 4)  # all scores equal: token t takes 1 / (t + 1) of each value
    value = torch.ones(64, 1, 8, 4)
    mixed = attention._by_products(query, query, value, 0.25)
    assert mixed.mean() == pytest.approx(1, abs=0.05)
    # 0 with probability 1/4, else 4/3, because the first token attends only to itself.
    assert sorted(set(mixed[:, 0, 0, 0].tolist())) == pytest.approx([0, 4 / 3])
