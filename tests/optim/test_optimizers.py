import copy
import io
import json

import pytest
import torch
from torch import nn

from gpt2ckpt.config.schema import AdamWConfig, MuonConfig
from gpt2ckpt.errors import CheckpointError, ConfigError
from gpt2ckpt.optim.optimizers import OptimizerSet, build_optimizer

ADAMW = AdamWConfig(lr=1e-2, weight_decay=0.1)
MUON = MuonConfig(lr=0.02, adamw_lr=1e-2)
BOTH = pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 12)
        self.proj = nn.Linear(12, 8)

    def forward(self, x):
        return x + self.proj(torch.relu(self.fc(self.ln(x))))


class Model(nn.Module):
    """GPT-2's parameter names and tied output, small enough to step in microseconds."""

    def __init__(self):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {"wte": nn.Embedding(11, 8), "h": nn.ModuleList([Block(), Block()])}
        )
        self.lm_head = nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, tokens):
        x = self.transformer["wte"](tokens)
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(x)


def new_model():
    torch.manual_seed(0)
    return Model()


def train(model, optimizer, steps):
    for step in steps:
        torch.manual_seed(step)
        tokens = torch.randint(0, 11, (4, 6))
        nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.set_lr_scale(1.0 / (step + 1))
        optimizer.step()
        optimizer.zero_grad()


def stepped(config, steps=3):
    model = new_model()
    optimizer = build_optimizer(config, model)
    train(model, optimizer, range(steps))
    return model, optimizer


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        if isinstance(a[name], dict):
            assert_same(a[name], b[name])
        else:
            assert a[name].dtype == b[name].dtype
            assert torch.equal(a[name], b[name]), name


@BOTH
@pytest.mark.parametrize("carry", [copy.deepcopy, through_a_file])
def test_restored_optimizer_continues_bitwise(config, carry):
    straight, straight_optimizer = stepped(config, 9)
    model, optimizer = stepped(config, 4)
    weights, state = carry(model.state_dict()), carry(optimizer.state_dict())
    train(
        model, optimizer, range(4, 6)
    )  # the loaded state must not share memory with the live tensors

    resumed = Model()
    resumed.load_state_dict(weights)
    resumed_optimizer = build_optimizer(config, resumed)
    resumed_optimizer.load_state_dict(state)
    train(resumed, resumed_optimizer, range(4, 9))

    assert_same(resumed.state_dict(), straight.state_dict())
    assert_same(resumed_optimizer.state_dict()["state"], straight_optimizer.state_dict()["state"])


@BOTH
def test_restored_state_is_a_copy(config):
    _, optimizer = stepped(config)
    saved = copy.deepcopy(optimizer.state_dict())
    fresh = new_model()
    restored = build_optimizer(config, fresh)
    restored.load_state_dict(saved)
    before = copy.deepcopy(saved)
    train(fresh, restored, range(2))
    assert_same(saved["state"], before["state"])


def test_adamw_is_fused_with_float32_step():
    _, optimizer = stepped(ADAMW)
    assert optimizer.torch_optimizers[0].defaults["fused"] is True
    state = optimizer.state_dict()["state"]["transformer.wte.weight"]
    assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
    assert state["step"].dtype == torch.float32 and state["step"].shape == ()
    assert state["step"] == 3


def test_tied_parameters_are_optimized_once():
    model, optimizer = stepped(ADAMW)
    names = [name for group in optimizer.state_dict()["groups"] for name in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert "lm_head.weight" not in names
    assert len(list(optimizer.parameters())) == len(names)


@BOTH
def test_weight_decay_applies_to_matrices_only(config):
    """With a gradient of zero, only the decay changes a weight."""
    model = new_model()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(config, model).step()
    for name, parameter in model.named_parameters():
        decayed = bool((parameter < 1).all())
        assert decayed == (parameter.ndim >= 2), name


def test_muon_trains_block_matrices_and_adamw_the_rest():
    _, optimizer = stepped(MUON)
    muon, *adamw = optimizer.state_dict()["groups"]
    assert muon["optimizer"] == "Muon"
    assert {group["optimizer"] for group in adamw} == {"AdamW"}
    blocks = [f"transformer.h.{i}.{part}.weight" for i in (0, 1) for part in ("fc", "proj")]
    assert muon["params"] == blocks
    assert muon["lr"] == MUON.lr and {group["lr"] for group in adamw} == {MUON.adamw_lr}
    assert optimizer.lr == pytest.approx(MUON.lr / 3)


def test_state_dict_is_plain_tensors_strings_and_json_values():
    _, optimizer = stepped(MUON)
    state = optimizer.state_dict()
    json.dumps(state["groups"], allow_nan=False)
    assert all(isinstance(key, str) for key in state["state"])
    assert all(torch.is_tensor(t) for kinds in state["state"].values() for t in kinds.values())


def test_lr_scale_applies_to_configured_rate():
    optimizer = build_optimizer(MUON, new_model())
    for _ in range(3):
        optimizer.set_lr_scale(0.5)
    rates = [group["lr"] for o in optimizer.torch_optimizers for group in o.param_groups]
    assert rates == [MUON.lr / 2, MUON.adamw_lr / 2, MUON.adamw_lr / 2]
    assert optimizer.lr == MUON.lr / 2
    assert optimizer.state_dict()["groups"][0]["lr"] == MUON.lr


def test_current_settings_apply_after_load():
    _, optimizer = stepped(ADAMW)
    changed = AdamWConfig(lr=5e-3, weight_decay=0.3, betas=[0.8, 0.9], eps=1e-6)
    resumed = build_optimizer(changed, new_model())
    resumed.load_state_dict(optimizer.state_dict())
    resumed.set_lr_scale(1.0)
    group = resumed.torch_optimizers[0].param_groups[0]
    wanted = {"lr": 5e-3, "weight_decay": 0.3, "betas": (0.8, 0.9), "eps": 1e-6}
    assert {key: group[key] for key in wanted} == wanted


def test_parameter_order_does_not_matter():
    _, optimizer = stepped(ADAMW)
    saved = optimizer.state_dict()
    saved["state"] = dict(reversed(saved["state"].items()))
    for group in saved["groups"]:
        group["params"].reverse()
    resumed = build_optimizer(ADAMW, new_model())
    resumed.load_state_dict(saved)
    assert_same(resumed.state_dict()["state"], optimizer.state_dict()["state"])


@BOTH
def test_unstepped_state_loads_over_stepped_state(config):
    unstepped = build_optimizer(config, new_model()).state_dict()
    assert unstepped["state"] == {}
    _, optimizer = stepped(config)
    optimizer.load_state_dict(unstepped)
    assert optimizer.state_dict()["state"] == {}


def test_zero_grad_frees_all_gradients():
    model, _ = stepped(MUON)
    assert all(parameter.grad is None for parameter in model.parameters())


def _without_state(state):
    del state["state"]


def _without_groups(state):
    state["groups"] = [{"lr": 1.0}]


def _renamed(state):
    state["groups"][0]["params"][0] = "transformer.other"


def _foreign_state(state):
    state["state"]["transformer.other"] = state["state"].pop("transformer.wte.weight")


def _reshaped(state):
    state["state"]["transformer.wte.weight"]["exp_avg"] = torch.zeros(12, 8)


def _shaped_step(state):
    state["state"]["transformer.wte.weight"]["step"] = torch.zeros(1)


def _half(state):
    del state["state"]["transformer.wte.weight"]["exp_avg_sq"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without_state, "no readable optimizer state"),
        (_without_groups, "no readable optimizer state"),
        (_renamed, "only the checkpoint has the parameter 'transformer.other'"),
        (_foreign_state, "only the checkpoint has the parameter 'transformer.other'"),
        (_reshaped, "exp_avg of 'transformer.wte.weight' has the shape [12, 8] instead of [11, 8]"),
        (_shaped_step, "step of 'transformer.wte.weight' has the shape [1] instead of []"),
        (_half, "holds exp_avg, step instead of exp_avg, exp_avg_sq, step"),
    ],
)
def test_mismatching_state_is_refused_and_changes_nothing(damage, words):
    _, optimizer = stepped(ADAMW)
    saved = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(saved["state"])
    damage(saved)
    with pytest.raises(CheckpointError) as caught:
        optimizer.load_state_dict(saved)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert_same(optimizer.state_dict()["state"], before)


def test_state_of_other_optimizer_is_refused():
    _, adamw = stepped(ADAMW)
    with pytest.raises(CheckpointError, match="with the optimizer that the checkpoint was trained"):
        build_optimizer(MUON, new_model()).load_state_dict(adamw.state_dict())


@pytest.mark.parametrize(
    ("cls", "values", "words"),
    [
        (AdamWConfig, {"lr": -1e-3}, "optimizer.lr=-0.001"),
        (AdamWConfig, {"lr": float("nan")}, "optimizer.lr=nan"),
        (AdamWConfig, {"weight_decay": -0.1}, "optimizer.weight_decay=-0.1"),
        (AdamWConfig, {"betas": [0.9, 1.0]}, r"optimizer.betas=\[0.9, 1.0\]"),
        (AdamWConfig, {"eps": 0.0}, "optimizer.eps=0.0"),
        (MuonConfig, {"momentum": 1.0}, "optimizer.momentum=1.0"),
        (MuonConfig, {"ns_steps": 100}, "optimizer.ns_steps=100"),
        (MuonConfig, {"adamw_lr": 0.0}, "optimizer.adamw_lr=0.0"),
    ],
)
def test_out_of_range_settings_are_refused(cls, values, words):
    with pytest.raises(ConfigError, match=f"{words} is out of range: it must be"):
        cls(**values)


class Odd(torch.optim.SGD):
    """Keeps every kind of state: numbers, lists, settings that a step changes, keys of its own."""

    @torch.no_grad()
    def step(self):
        self.state.setdefault("steps", torch.zeros(()))
        self.state["steps"] += 1
        for group in self.param_groups:
            group["scale"] = group.get("scale", 1.0) * 0.9
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                rows = state.setdefault("rows", [torch.zeros(len(parameter))])
                rows[0] += parameter.grad.flatten(1).sum(1) if parameter.ndim > 1 else 0
                factor = group["lr"] * group["scale"] * self.state["steps"] * state["count"]
                parameter.sub_(factor * (parameter.grad + rows[0].mean()))


def odd(model):
    return OptimizerSet([Odd(model.parameters(), lr=0.01)], model)


@pytest.mark.parametrize("carry", [copy.deepcopy, through_a_file])
def test_any_state_of_an_optimizer_is_restored_bitwise(carry):
    straight = new_model()
    train(straight, odd(straight), range(5))
    model = new_model()
    optimizer = odd(model)
    train(model, optimizer, range(3))
    weights, state = carry(model.state_dict()), carry(optimizer.state_dict())
    train(model, optimizer, range(3, 4))  # a rollback undoes it
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(model, optimizer, range(3, 5))
    assert_same(model.state_dict(), straight.state_dict())
    resumed = Model()
    resumed.load_state_dict(weights)
    resumed_optimizer = odd(resumed)
    resumed_optimizer.load_state_dict(state)
    train(resumed, resumed_optimizer, range(3, 5))
    assert_same(resumed.state_dict(), straight.state_dict())
    assert state["group_state"] == [{"scale": pytest.approx(0.9**3)}]


def test_state_of_the_built_in_optimizers_has_no_more_entries():
    for config in (ADAMW, MUON):
        assert set(stepped(config)[1].state_dict()) == {"state", "groups"}


def test_other_number_of_groups_is_refused():
    model = new_model()
    optimizer = odd(model)
    train(model, optimizer, range(1))
    saved = optimizer.state_dict()
    saved["group_state"] = [*saved["group_state"], {}]
    with pytest.raises(CheckpointError, match="group_state is not a list of 1"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda model: [], "no optimizer"),
        (lambda model: [torch.optim.SGD], "returned a type; it must return a torch optimizer"),
        (lambda model: [torch.optim.SGD(Model().parameters(), 0.1)], "that is not in the model"),
        (lambda model: 2 * [torch.optim.SGD(model.parameters(), 0.1)], "is in two groups"),
        (lambda model: [torch.optim.Optimizer(model.parameters(), {})], "no 'lr'"),
    ],
)
def test_optimizers_that_do_not_fit_the_model_are_refused(build, message):
    model = new_model()
    with pytest.raises((TypeError, ValueError), match=message):
        OptimizerSet(build(model), model)


class Shapes(torch.optim.SGD):
    """A momentum of a given shape, which broadcasts."""

    shape = None  # that of the parameter

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                state["mean"] = torch.zeros(self.shape or parameter.shape, device=parameter.device)
            parameter.sub_(state["mean"] + parameter.grad)


def test_saved_tensor_of_another_shape_is_refused_by_a_trial_step():
    model = new_model()
    optimizer = OptimizerSet([Shapes(model.parameters(), lr=0.1)], model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    saved = optimizer.state_dict()

    def on_meta():
        with torch.device("meta"):
            other = Model()
        return OptimizerSet([Shapes(other.parameters(), lr=0.1)], other)

    same, fresh = on_meta(), on_meta()
    same.load_state_dict(saved)
    same.check_step(saved, fresh)
    Shapes.shape = (1,)
    try:
        loaded = on_meta()
        loaded.load_state_dict(saved)
        with pytest.raises(CheckpointError, match=r"state mean of .* instead of \[1\]"):
            loaded.check_step(saved, on_meta())
    finally:
        Shapes.shape = None
