"""The modern recipe: its loss, its optimizer and its schedule compute what they state."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiments.modern_gpt.model import ModernConfig, ModernGPT, rotate
from experiments.modern_gpt.optimizer import ModernMuonConfig, Muon, build, orthogonalize
from experiments.modern_gpt.schedule import CooldownConfig
from experiments.modern_gpt.schedule import build as build_schedule
from experiments.modern_gpt.softcap import capped_cross_entropy, soft_cap
from gpt2ckpt.config.options import forget

for name in [name for name in sys.modules if name.startswith("experiments.modern_gpt")]:
    forget(name)  # the tests of other files must not find these options
    del sys.modules[name]

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 40}


def model(**more: object) -> ModernGPT:
    torch.manual_seed(1)
    built = ModernGPT(ModernConfig(**{**SMALL, **more}))
    with torch.no_grad():  # output projections are zero at the start
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return built


def test_capped_loss_has_the_value_and_gradients_of_its_formula() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(1100, 16, requires_grad=True)
    weight = torch.randn(300, 16, requires_grad=True)
    targets = torch.randint(300, (1100,))
    loss = capped_cross_entropy(hidden, weight, targets, 5.0)
    found = torch.autograd.grad(loss * 3, (hidden, weight))
    direct = F.cross_entropy(soft_cap(hidden @ weight.T, 5.0), targets)
    expected = torch.autograd.grad(direct * 3, (hidden, weight))
    torch.testing.assert_close(loss, direct)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "more",
    [{}, {"tied": False}, {"value_residual": True}, {"logit_cap": 10.0}],
    ids=["plain", "untied", "value residual", "logit cap"],
)
def test_loss_is_the_cross_entropy_of_the_logits(more: dict[str, object]) -> None:
    built, tokens = model(**more), torch.randint(40, (3, 8))
    targets = torch.randint(40, (3, 8))
    logits = built(tokens)
    assert logits.shape == (3, 8, 40)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(built.loss(tokens, targets), expected)


def test_logits_depend_on_earlier_tokens_alone() -> None:
    built, tokens = model(value_residual=True), torch.randint(40, (1, 8))
    changed = tokens.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 40
    difference = (built(tokens) - built(changed)).abs().amax(dim=(0, 2))
    assert difference[:5].max() == 0
    assert difference[5:].min() > 0


def test_rotation_keeps_lengths_and_depends_on_the_distance_of_positions() -> None:
    config = ModernConfig(**SMALL)
    built = ModernGPT(config)
    query, key = torch.randn(8), torch.randn(8)
    rotated = [rotate(x.expand(8, 8), built.cosine, built.sine) for x in (query, key)]
    torch.testing.assert_close(rotated[0].norm(dim=1), query.norm().expand(8))
    products = rotated[0] @ rotated[1].T
    torch.testing.assert_close(products[2:, 2:], products[:-2, :-2])


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 128, 32), (1, 32, 128)])
def test_orthogonalize_keeps_singular_vectors_and_sets_singular_values_near_one(
    shape: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.linspace(0.2, 1, left.shape[-1])
    found = left.mT @ orthogonalize(left * values @ right) @ right.mT
    diagonal = found.diagonal(dim1=-2, dim2=-1)
    assert diagonal.min() > 0.8 and diagonal.max() < 1.2
    assert (found - torch.diag_embed(diagonal)).abs().max() < 1e-3


def test_muon_trains_the_matrices_of_the_blocks_and_adamw_everything_else() -> None:
    built = model(value_residual=True)
    muon, adamw = build(ModernMuonConfig(), built)
    names = {id(parameter): name for name, parameter in built.named_parameters()}
    parts = [
        {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
        for optimizer in (muon, adamw)
    ]
    assert parts[1] == {"embedding.weight", "blocks.1.first_value"}
    assert parts[0] | parts[1] == set(names.values()) and not parts[0] & parts[1]


def test_cautious_decay_shrinks_only_values_that_the_update_moves_towards_zero() -> None:
    weight = nn.Parameter(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    settings = {"momentum": 0.9, "momentum_warmup": 0, "row_decay": 0.0}
    plain, decayed = weight.detach().clone(), weight.detach().clone()
    for target, decay in ((plain, 0.0), (decayed, 0.5)):
        parameter = nn.Parameter(target)
        parameter.grad = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        Muon([parameter], lr=0.1, weight_decay=decay, **settings).step()
    lower = plain - decayed
    torch.testing.assert_close(lower, torch.tensor([[0.05, 0.0], [0.0, 0.0]]))


def test_cooldown_is_flat_and_then_linear() -> None:
    factor = build_schedule(CooldownConfig(cooldown=0.5, final=0.1), 100)
    assert [factor(step) for step in (0, 49, 50)] == [1.0, 1.0, 1.0]
    assert factor(75) == pytest.approx(0.55)
    assert factor(100) == pytest.approx(0.1)
