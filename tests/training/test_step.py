"""An optimizer step is applied completely or not at all, for any division into micro-batches."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import differing

from gpt2ckpt.config.schema import AdamWConfig, ModelConfig, MuonConfig, TrainerConfig
from gpt2ckpt.data.loader import BlockLoader
from gpt2ckpt.data.tokens import Piece, TokenStream
from gpt2ckpt.model.build import loss_of
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.optim.optimizers import build_optimizer
from gpt2ckpt.parallel.ddp import ParallelLoss
from gpt2ckpt.training.anomalies import NonFiniteLoss
from gpt2ckpt.training.hardware import choose_hardware
from gpt2ckpt.training.rng import capture_generators, restore_generators, seed_everything
from gpt2ckpt.training.state import Counters, TrainingState
from gpt2ckpt.training.step import HalfApplied, StepHooks, Stepper, StepResult

SHAPE = ModelConfig(2, 2, 32, 16, 64, dropout=0.1)
TOKENS = np.random.default_rng(0).integers(0, 64, 40 * 16 + 1).astype(np.uint16)
LOADER = BlockLoader(TokenStream([Piece("tokens", TOKENS)], 64), 16, seed=3)


def state_of(optimizer: AdamWConfig | MuonConfig, dropout: float = 0.1) -> TrainingState:
    seed_everything(1)
    model = GPT2(dataclasses.replace(SHAPE, dropout=dropout))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainingState(model, build_optimizer(optimizer, model), scaler, Counters())


def stepper_of(
    state: TrainingState,
    batch_size: int = 2,
    grad_accum: int = 3,
    loss: Callable[..., torch.Tensor] | None = None,
    grad_clip: float = 1.0,
) -> Stepper:
    hardware = choose_hardware("cpu", "float32", 1)
    trainer = TrainerConfig(batch_size=batch_size, grad_accum=grad_accum, grad_clip=grad_clip)
    return Stepper(ParallelLoss(loss or state.model.loss), LOADER, hardware, trainer)


def everything(state: TrainingState) -> dict[str, Any]:
    """Return a copy of everything that a step may change."""
    live = {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "gradients": {name: p.grad for name, p in state.model.named_parameters()},
        "rng": capture_generators(),
        "counters": dataclasses.asdict(state.counters),
    }
    return copy.deepcopy(live)


class Failing:
    """The model's loss; fails in the micro-batch number `at`, after computing the loss."""

    def __init__(self, state: TrainingState, at: int, fail: Callable[[torch.Tensor], Any]) -> None:
        self._loss, self._at, self._fail = state.model.loss, at, fail

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self._loss(inputs, targets)
        self._at -= 1
        if self._at == 0:
            np.random.rand()  # all generators have changed since
            loss = self._fail(loss)
        return loss


def raises(error: BaseException) -> Callable[[torch.Tensor], Any]:
    def fail(loss: torch.Tensor) -> Any:
        raise error

    return fail


FAILURES: dict[str, tuple[Callable[[torch.Tensor], Any], type[BaseException]]] = {
    "out of memory": (raises(torch.OutOfMemoryError("no memory")), torch.OutOfMemoryError),
    "an interrupt": (raises(KeyboardInterrupt()), KeyboardInterrupt),
    "a loss that is no number": (lambda loss: loss * float("nan"), NonFiniteLoss),
    "an infinite loss": (lambda loss: loss + float("inf"), NonFiniteLoss),
    "an infinite gradient": (
        lambda loss: loss + ((loss - loss.detach()).sqrt() * 0),
        NonFiniteLoss,
    ),
}


@pytest.mark.parametrize("optimizer", [AdamWConfig(), MuonConfig()], ids=["adamw", "muon"])
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("at", [1, 3])
def test_failed_step_leaves_state_unchanged(
    failure: str, at: int, optimizer: AdamWConfig | MuonConfig
) -> None:
    fail, error = FAILURES[failure]
    state = state_of(optimizer)
    stepper_of(state).step(state, 0)
    before = everything(state)
    with pytest.raises(error):
        stepper_of(state, loss=Failing(state, at, fail)).step(state, 6)
    after = everything(state)
    assert differing(before, after) == []
    assert all(gradient is None for gradient in after["gradients"].values())
    # So the step can be repeated with the same result.
    twin = state_of(optimizer)
    stepper_of(twin).step(twin, 0)
    expected = stepper_of(twin).step(twin, 6)
    generators = capture_generators()
    restore_generators(after["rng"])
    assert stepper_of(state).step(state, 6) == expected
    assert differing(capture_generators(), generators) == []
    assert differing(state.model.state_dict(), twin.model.state_dict()) == []


class Counting(torch.nn.Module):
    """A model with buffers that its forward pass changes, one in place and one by assignment."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(64))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(64))
        self.register_buffer("table", torch.arange(64.0), persistent=False)
        self.calls: torch.Tensor
        self.mean: torch.Tensor
        self.table: torch.Tensor

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.mean = 0.9 * self.mean + self.weight.detach()
        return self.weight.expand(*tokens.shape, 64) * self.table


def test_step_that_fails_restores_buffers_of_the_model() -> None:
    model = Counting()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainingState(model, build_optimizer(AdamWConfig(), model), scaler, Counters())
    stepper_of(state, loss=loss_of(model)).step(state, 0)
    before = everything(state)
    assert before["model"]["calls"] == 3
    with pytest.raises(NonFiniteLoss):
        stepper_of(state, loss=lambda x, y: loss_of(model)(x, y) * float("nan")).step(state, 6)
    assert differing(before, everything(state)) == []
    stepper_of(state, loss=loss_of(model)).warm_up_ddp(state)
    assert differing(before, everything(state)) == []


def test_non_finite_loss_message_says_how_to_resume() -> None:
    state = state_of(AdamWConfig())
    with pytest.raises(NonFiniteLoss) as raised:
        stepper_of(state, loss=Failing(state, 1, lambda x: x * float("nan"))).step(state, 0)
    for words in ("the loss is nan", "the weights are unchanged", "+resume=latest"):
        assert words in str(raised.value)


def test_interrupted_update_raises_half_applied() -> None:
    """Muon has made its update when AdamW fails: the state is neither the old nor the new one."""
    state = state_of(MuonConfig())

    def fail(*_: Any) -> None:
        raise MemoryError

    state.optimizer.torch_optimizers[1].register_step_pre_hook(fail)
    with pytest.raises(HalfApplied):
        stepper_of(state).step(state, 0)


def run(batch_size: int, grad_accum: int, steps: int = 3) -> tuple[list[StepResult], Any]:
    # A large eps: some gradients are nothing but rounding (a key's bias changes no attention), and
    # Adam would make steps of them that are as long as any.
    state = state_of(AdamWConfig(lr=1e-2, eps=1e-4), dropout=0.0)
    stepper = stepper_of(state, batch_size, grad_accum)
    results = [stepper.step(state, i * stepper.blocks) for i in range(steps)]
    return results, state.model.state_dict()


@pytest.mark.parametrize(("batch_size", "grad_accum"), [(6, 2), (3, 4), (1, 12)])
def test_accumulated_micro_batches_equal_one_large_batch(batch_size: int, grad_accum: int) -> None:
    (whole, weights), (parts, accumulated) = run(12, 1), run(batch_size, grad_accum)
    for one, other in zip(whole, parts, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-6)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, accumulated[name], rtol=1e-4, atol=1e-6)


def test_step_trains_on_blocks_of_its_position() -> None:
    seen: list[torch.Tensor] = []
    state = state_of(AdamWConfig())

    def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(inputs)
        return state.model.loss(inputs, targets)

    stepper_of(state, 2, 3, loss).step(state, 17)
    assert torch.equal(torch.cat(seen), LOADER.batch(17, 6)[0])


def test_norm_is_reported_before_clipping_and_update_is_clipped() -> None:
    big, clipped, free = (state_of(AdamWConfig(), dropout=0.0) for _ in range(3))
    norm = stepper_of(big, grad_clip=0.0).step(big, 0).grad_norm
    assert norm > 0.1
    assert stepper_of(clipped, grad_clip=0.01).step(clipped, 0).grad_norm == pytest.approx(norm)
    assert stepper_of(free, grad_clip=1e9).step(free, 0).grad_norm == pytest.approx(norm)

    def squares(state: TrainingState) -> float:
        states = state.optimizer.state_dict()["state"].values()
        return sum(float(moments["exp_avg_sq"].sum()) for moments in states)

    share = 1 - AdamWConfig().betas[1]  # of the squared gradient in its average, after one step
    assert squares(clipped) == pytest.approx(share * 0.01**2, rel=1e-3)
    assert squares(free) == pytest.approx(squares(big), rel=1e-6)
    assert squares(free) == pytest.approx(share * norm**2, rel=1e-3)


def test_float16_overflow_skips_update_and_lowers_scale() -> None:
    state = state_of(AdamWConfig(), dropout=0.0)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, enabled=True)
    weights = copy.deepcopy(state.model.state_dict())
    result = stepper_of(state, loss=lambda x, y: state.model.loss(x, y) * 1e10).step(state, 0)
    assert not np.isfinite(result.grad_norm)
    assert differing(weights, state.model.state_dict()) == []
    assert state.scaler.get_scale() == 2.0**99


def test_hook_is_called_before_each_micro_batch() -> None:
    state = state_of(AdamWConfig())
    calls: list[tuple[int, int]] = []
    hooks = StepHooks(on_micro_batch=lambda *part: calls.append(part))
    dataclasses.replace(stepper_of(state), hooks=hooks).step(state, 0)
    assert calls == [(1, 3), (2, 3), (3, 3)]
