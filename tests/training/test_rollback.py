"""Runs with anomalies: no anomaly changes the weights, and later checkpoints resume exactly."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from training_helpers import differing, events, process_switches_restored, start_of, train

from gpt2ckpt.checkpoint.reading import load
from gpt2ckpt.data.loader import BlockLoader
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.optim.optimizers import build_optimizer
from gpt2ckpt.parallel.ddp import ParallelLoss
from gpt2ckpt.training.anomalies import LossSpike, NonFiniteLoss, NonFiniteWeights, TrainingAnomaly
from gpt2ckpt.training.hardware import choose_hardware, prepare_process
from gpt2ckpt.training.rng import seed_everything
from gpt2ckpt.training.state import Counters, TrainingState
from gpt2ckpt.training.step import Stepper
from gpt2ckpt.training.validate_run import ValidatedRun, validate_run

WORDS = ["model.dropout=0.1", "checkpoint.save_every=5", "checkpoint.keep_rolling=99"]
EPOCH = [*WORDS, "trainer.max_epochs=1", "trainer.on_bad_loss=rollback"]  # 62 blocks in 31 steps
Change = Callable[[GPT2, torch.Tensor], torch.Tensor]


def not_a_number(model: GPT2, loss: torch.Tensor) -> torch.Tensor:
    return loss * float("nan")


def five_times(model: GPT2, loss: torch.Tensor) -> torch.Tensor:
    return loss * 5


def spoils_a_weight(model: GPT2, loss: torch.Tensor) -> torch.Tensor:
    """Make a weight infinite after the update, so that the loss of the step is still finite."""

    def spoil(*_: Any) -> None:
        handle.remove()
        with torch.no_grad():
            model.transformer.h[1].mlp.c_fc.weight[3, 4] = float("inf")

    handle = register_optimizer_step_post_hook(spoil)
    return loss


def spoils_a_moment(model: GPT2, loss: torch.Tensor) -> torch.Tensor:
    """Make an optimizer moment infinite. No loss shows it: updates of its weight become 0."""

    def spoil(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        handle.remove()
        optimizer.state[model.transformer.wte.weight]["exp_avg_sq"][3, 4] = float("inf")

    handle = register_optimizer_step_post_hook(spoil)
    return loss


@contextmanager
def bad_block(validated: ValidatedRun, position: int, change: Change) -> Iterator[None]:
    """Change the loss of each step that trains on the token block at `position`."""
    config = validated.config
    loader = BlockLoader(validated.corpus.train, config.model.block_size, config.seed)
    bad, real = loader.batch(position, 1)[0][0], GPT2.loss

    def loss(self: GPT2, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        value = real(self, inputs, targets)
        return change(self, value) if (inputs == bad).all(1).any() else value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GPT2, "loss", loss)
        yield


def final(run: Path) -> dict[str, Any]:
    state = load(run / "checkpoints" / "latest.pt")
    kept = ("step", "epoch", "tokens_seen", "train_loss", "data", "model", "optimizer", "rng")
    return {key: state[key] for key in kept}


def trained_without_loop(validated: ValidatedRun, positions: list[int]) -> GPT2:
    """Return the model after steps on the batches at `positions`, trained without the loop."""
    config, hardware = validated.config, choose_hardware("cpu", "float32", 1)
    with process_switches_restored():
        prepare_process(hardware, deterministic=True)
        seed_everything(config.seed)
        model = GPT2(config.model)
        optimizer = build_optimizer(config.optimizer, model)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        state = TrainingState(model, optimizer, scaler, Counters())
        loader = BlockLoader(validated.corpus.train, config.model.block_size, config.seed)
        stepper = Stepper(ParallelLoss(model.loss), loader, hardware, config.trainer)
        for step, position in enumerate(positions):
            optimizer.set_lr_scale(validated.schedule(step))
            stepper.step(state, position)
    return model


def resumes_exactly(run: Path, tmp_path: Path) -> None:
    """Assert that a resume from each regular checkpoint of `run` ends in the same state."""
    losses = {event["step"]: event["train_loss"] for event in events(run)}
    for source in sorted((run / "checkpoints").glob("rolling_step_*.pt"))[:-1:3]:
        fork = tmp_path / f"from_{source.stem}"
        train([f"+resume={source}", "+fork=true"], fork)
        assert differing(final(run), final(fork)) == [], source.name
        assert all(losses[event["step"]] == event["train_loss"] for event in events(fork))


def test_rollback_skips_only_the_batch_with_non_finite_loss(
    token_data: Any, tmp_path: Path
) -> None:
    words, run = [*token_data.overrides, *EPOCH], tmp_path / "run"
    validated = validate_run(start_of(words, tmp_path))
    with bad_block(validated, 17, not_a_number):  # in the ninth step: positions 16 and 17
        train(words, run)
        resumes_exactly(run, tmp_path)
    end = final(run)
    assert (end["step"], end["data"]["position"]) == (31, 64)
    counts = {"rollbacks": 1, "skipped_blocks": 2, "in_a_row": 0, "recent": []}
    assert end["data"]["bad_numbers"] == counts
    assert (run / "checkpoints" / "epoch_00000.pt").exists()
    assert [event["step"] for event in events(run)] == list(range(1, 32))
    skipped = [event["step"] for event in events(run, "skipped_blocks")]
    assert skipped == list(range(9, 32))
    by_hand = trained_without_loop(validated, [p for p in range(0, 64, 2) if p != 16])
    assert differing(by_hand.state_dict(), end["model"]) == []


def test_stop_saves_last_finite_state_and_message_says_how_to_resume(
    token_data: Any, tmp_path: Path
) -> None:
    words, run = [*token_data.overrides, *WORDS, "trainer.max_steps=14"], tmp_path / "run"
    validated = validate_run(start_of(words, tmp_path))
    with bad_block(validated, 17, not_a_number):
        with pytest.raises(NonFiniteLoss, match=r"\+resume=latest .*trainer.on_bad_loss=rollback"):
            train(words, run)
        [emergency] = (run / "checkpoints").glob("emergency_*.pt")
        assert load(emergency)["step"] == 8
        with pytest.raises(NonFiniteLoss):
            train(["+resume=latest"], run)  # as the message advises
        train(["+resume=latest", "trainer.on_bad_loss=rollback"], run)
        skipping = tmp_path / "skipping"
        train([*words, "trainer.on_bad_loss=rollback"], skipping)
    assert differing(final(skipping), final(run)) == []


@pytest.mark.parametrize(
    ("position", "steps"),
    [(13, "the losses after it are no numbers"), (18, "the save that is due finds it")],
    ids=["by losses", "at a save"],
)
def test_non_finite_weights_return_to_last_regular_checkpoint(
    token_data: Any, tmp_path: Path, position: int, steps: str
) -> None:
    """Step 7 or step 10 makes a weight infinite; a save is due every 5 steps."""
    words, run = [*token_data.overrides, *EPOCH, "logger=tensorboard"], tmp_path / "run"
    validated = validate_run(start_of(words, tmp_path))
    with bad_block(validated, position, spoils_a_weight):
        train(words, run)
        resumes_exactly(run, tmp_path)
    end = final(run)
    assert all(bool(weight.isfinite().all()) for weight in end["model"].values())
    assert end["step"] == 31
    skipped = 20 - 10  # from step 5 to the batch of step 10, the last that was trained
    assert end["data"]["bad_numbers"]["skipped_blocks"] == skipped
    assert end["data"]["bad_numbers"]["rollbacks"] == {13: 3, 18: 1}[position]
    assert [event["step"] for event in events(run)] == list(range(1, 32))
    assert tensorboard_steps(run) == list(range(1, 32))
    by_hand = trained_without_loop(validated, [*range(0, 10, 2), *range(20, 72, 2)])
    assert differing(by_hand.state_dict(), end["model"]) == []


def test_rollback_archives_later_checkpoints(token_data: Any, tmp_path: Path) -> None:
    """After the rollback, the best model of step 6 is neither best nor latest any more."""
    words, run = [*token_data.overrides, *EPOCH, "trainer.eval_every=6"], tmp_path / "run"
    validated = validate_run(start_of(words, tmp_path))
    with bad_block(validated, 13, spoils_a_weight):
        train(words, run)
    [aside] = (run / "checkpoints").glob("abandoned_*")
    for name in ("best_model.pt", "best_model_backup.pt", "latest.pt"):
        left = load(aside / name)
        assert (left["step"], left["data"]["position"]) == (6, 12)
    best = load(run / "checkpoints" / "best_model.pt")
    assert best["data"]["bad_numbers"]["rollbacks"] == 3
    assert [event["step"] for event in events(run, "val_loss")] == [6, 12, 18, 24, 30, 31]


def tensorboard_steps(run: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    shown.Reload()
    return [event.step for event in shown.Scalars("train/loss")]


def test_loss_spike_is_skipped_before_and_after_resume(token_data: Any, tmp_path: Path) -> None:
    """Whether a loss is a spike depends on the earlier losses, which the checkpoint holds."""
    more = ["trainer.spike_zscore=8", "trainer.spike_window=6"]
    words, run = [*token_data.overrides, *EPOCH, *more], tmp_path / "run"
    validated = validate_run(start_of(words, tmp_path))
    with bad_block(validated, 24, five_times):
        train(words, run)
        resumes_exactly(run, tmp_path)
        with pytest.raises(LossSpike, match="standard deviations above the last 6"):
            train([*words, "trainer.on_bad_loss=stop"], tmp_path / "stopped")
    end = final(run)
    assert end["data"]["bad_numbers"]["skipped_blocks"] == 2
    assert len(end["data"]["bad_numbers"]["recent"]) == 6
    by_hand = trained_without_loop(validated, [p for p in range(0, 64, 2) if p != 24])
    assert differing(by_hand.state_dict(), end["model"]) == []


def test_diverging_training_stops_after_max_rollbacks(
    token_data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a learning rate at which training really diverges."""
    words = [*token_data.overrides, *WORDS, "schedule=constant", "schedule.warmup_steps=0"]
    run = tmp_path / "run"
    train([*words, "trainer.max_steps=5"], run)
    good = load(run / "checkpoints" / "latest.pt")
    more = ["+resume=latest", "optimizer.lr=1e39", "trainer.max_steps=40"]
    more += ["trainer.on_bad_loss=rollback", "trainer.max_rollbacks=4"]
    limit = r"after 4 rollbacks: .* raise trainer\.max_rollbacks"
    with caplog.at_level(logging.WARNING), pytest.raises(TrainingAnomaly, match=limit):
        train(more, run)
    assert "back to step 5 (rolling_step_000005.pt)" in caplog.text
    latest = load(run / "checkpoints" / "latest.pt")
    assert latest["step"] == 5
    assert differing(good["model"], latest["model"]) == []


def test_rollback_without_regular_checkpoint_is_an_error(token_data: Any, tmp_path: Path) -> None:
    words = [*token_data.overrides, *EPOCH, "checkpoint.save_every=1000"]
    words += ["checkpoint.save_epochs=false"]
    validated = validate_run(start_of(words, tmp_path))
    with (
        bad_block(validated, 13, spoils_a_weight),
        pytest.raises(
            NonFiniteLoss, match="no regular checkpoint to go back to: train with a lower"
        ),
    ):
        train(words, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("*.pt"))


@pytest.mark.parametrize("spoils", [spoils_a_weight, spoils_a_moment])
def test_non_finite_weights_with_finite_loss_are_not_saved(
    token_data: Any, tmp_path: Path, spoils: Change
) -> None:
    words = [*token_data.overrides, *WORDS, "trainer.max_steps=14"]
    validated = validate_run(start_of(words, tmp_path))
    run = tmp_path / "run"
    with (
        bad_block(validated, 18, spoils),
        pytest.raises(NonFiniteWeights, match="the weights after step 10 are not finite"),
    ):
        train(words, run)
    assert load(run / "checkpoints" / "latest.pt")["step"] == 5
    assert {path.name for path in (run / "checkpoints").glob("*0*.pt")} == {
        "rolling_step_000005.pt"
    }
