"""Callbacks in real trainings: when hooks are called, what is saved, and what a callback may break.

tests/endtoend/test_plugin_callbacks.py trains with callbacks of plugins by the command line.
"""

import json
import logging
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_rollback import EPOCH, bad_block, final, spoils_a_weight
from training_helpers import differing, events, start_of, train

from gpt2ckpt.checkpoint.reading import load
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.training.callbacks import Callback
from gpt2ckpt.training.validate_run import finished_notice, validate_run

WORDS = ["model.dropout=0.1", "checkpoint.save_every=5", "checkpoint.keep_rolling=99"]
SEVEN = [*WORDS, "trainer.max_steps=7", "trainer.eval_every=3"]


class Diary:
    """Writes down each call, and keeps the sum of the losses and a tensor as its state."""

    def __init__(self, **more: Callable[[Any], None]) -> None:
        self.calls: list[str] = []
        self.more = more  # called in the hook of that name, with the run
        self.total, self.mean = 0.0, torch.zeros(3)

    def write(self, hook: str, run: Any, text: object = "") -> None:
        self.calls.append(f"{hook} {run.step} {text}".strip())
        if hook in self.more:
            self.more[hook](run)

    def on_run_start(self, run: Any) -> None:
        self.write("start", run)

    def on_step_end(self, run: Any, metrics: dict[str, float]) -> None:
        self.total += metrics["train_loss"]
        self.mean += metrics["grad_norm"]
        self.write("step", run)

    def on_evaluation_end(self, run: Any, metrics: dict[str, float]) -> None:
        self.total += metrics["val_loss"]
        self.write("evaluation", run)

    def on_checkpoint_saved(self, run: Any, path: Path) -> None:
        self.write("saved", run, path.name)

    def on_run_end(self, run: Any) -> None:
        self.write("end", run)

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.mean = state["total"], state["mean"]


def callback(target: Any, name: str = "diary") -> Callback:
    return Callback(name, f"callback '{name}' (plugin mine)", lambda: target)


def at_step(step: int, action: Callable[[Any], object]) -> Callable[[Any], None]:
    def act(run: Any) -> None:
        if run.step == step:
            action(run)

    return act


def test_hooks_are_called_in_the_order_of_a_step_boundary(token_data: Any, tmp_path: Path) -> None:
    diary = Diary()
    words = [*token_data.overrides, *SEVEN, "checkpoint.async_save=false"]
    train(words, tmp_path / "run", [callback(diary)])
    assert diary.calls == [
        *("start 0", "step 1", "step 2", "step 3", "evaluation 3"),
        *("saved 4 best_model.pt", "step 4", "step 5"),
        *("saved 6 rolling_step_000005.pt", "step 6", "evaluation 6"),
        *("saved 7 best_model.pt", "step 7", "evaluation 7"),
        *("saved 7 rolling_step_000007.pt", "end 7"),
    ]


def test_state_of_a_callback_is_restored_exactly(token_data: Any, tmp_path: Path) -> None:
    """Stopped before an evaluation and between two saves."""
    words = [*token_data.overrides, *SEVEN]
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(words, whole, [callback(Diary())])
    for step in (3, 6):
        stops = Diary(step=at_step(step, lambda run: os.kill(os.getpid(), signal.SIGTERM)))
        resume = ["+resume=auto"] if run.exists() else []
        outcome = train([*words, *resume], run, [callback(stops)])
        assert outcome.stopped is signal.SIGTERM and stops.calls[-1] == f"end {step}"
    train(["+resume=latest"], run, [callback(Diary())])
    ours, theirs = (load(path / "checkpoints" / "latest.pt") for path in (run, whole))
    assert differing(final(run), final(whole)) == []
    assert differing(ours["callbacks"], theirs["callbacks"]) == []
    assert ours["callbacks"]["diary"]["total"] > 0 and ours["callbacks"]["diary"]["mean"].all()


def test_loaded_state_is_kept_if_the_first_step_fails(token_data: Any, tmp_path: Path) -> None:
    """The callback changes the tensors that it has loaded before it raises."""
    run = tmp_path / "run"
    words = [*token_data.overrides, *SEVEN, "trainer.eval_every=0"]
    train([*words, "trainer.max_steps=5"], run, [callback(Diary())])
    train([*words, "+resume=latest"], run, [callback(Diary(step=at_step(6, fails)))])
    files = [run / "checkpoints" / f"rolling_step_{step:06}.pt" for step in (5, 7)]
    before, after = (load(path)["callbacks"]["diary"] for path in files)
    assert differing(before, after) == []


def test_rollback_restores_the_state_of_a_callback(token_data: Any, tmp_path: Path) -> None:
    words, run = [*token_data.overrides, *EPOCH, "trainer.max_steps=14"], tmp_path / "run"
    validated = validate_run(start_of(words, tmp_path))
    diary, added = Diary(), [Diary()]

    class Steps(Diary):
        def state_dict(self) -> dict[str, Any]:
            return {"steps": [int(call[5:]) for call in self.calls if call.startswith("step")]}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.calls = [f"step {step}" for step in state["steps"]]

    with bad_block(validated, 13, spoils_a_weight):
        train(words, run, [callback(Steps()), callback(diary, "other")])
    kept = load(run / "checkpoints" / "latest.pt")["callbacks"]
    assert kept["diary"]["steps"] == list(range(1, 15))
    steps = [call for call in diary.calls if call.startswith("step")]
    assert steps == [f"step {n}" for n in [*range(1, 8), *range(6, 15)]]

    def build() -> Diary:
        added.append(Diary())
        return added[-1]

    more = tmp_path / "added"  # to a run without it, that returns to a checkpoint before that
    train([*words, "trainer.max_steps=5"], more)
    with bad_block(validated, 13, spoils_a_weight):
        new = Callback("new", "callback 'new' (plugin mine)", build)
        train(["+resume=latest", "trainer.max_steps=14"], more, [new])
    first, second = added[1:]
    assert (first.calls[0], first.calls[-1], second.calls[:2]) == (
        *("start 5", "step 7"),
        ["start 5", "step 6"],
    )


def uses_everything(run: Any) -> None:
    """What a callback must not do, and what does not change the training all the same."""
    random.random()
    np.random.rand()
    torch.manual_seed(run.step)
    run.model.eval()
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    run.model.loss(tokens, tokens).backward()
    torch.set_grad_enabled(False)


@pytest.mark.parametrize("hook", ["start", "step", "evaluation", "saved"])
def test_a_callback_does_not_change_the_training(
    token_data: Any, tmp_path: Path, hook: str
) -> None:
    words = [*token_data.overrides, *SEVEN]
    train(words, tmp_path / "without")
    train(words, tmp_path / "with", [callback(Diary(**{hook: uses_everything}))])
    assert differing(final(tmp_path / "with"), final(tmp_path / "without")) == []
    assert torch.is_grad_enabled()


def fails(run: Any) -> None:
    raise ValueError("it does not\nwork")


def exits(run: Any) -> None:
    raise SystemExit(3)


@pytest.mark.parametrize("hook", ["start", "step", "evaluation", "saved", "end"])
@pytest.mark.parametrize("raises", [fails, exits])
def test_a_callback_that_raises_is_switched_off_with_one_warning(
    token_data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, hook: str, raises: Any
) -> None:
    names = {"start": "on_run_start", "step": "on_step_end", "evaluation": "on_evaluation_end"}
    names |= {"saved": "on_checkpoint_saved", "end": "on_run_end"}
    at = {"start": 0, "evaluation": 6, "end": 7}.get(hook, 6)
    diary, other = Diary(**{hook: at_step(at, raises)}), Diary()
    words = [*token_data.overrides, *SEVEN, "checkpoint.async_save=false"]
    with caplog.at_level(logging.WARNING, logger="gpt2ckpt.training.callbacks"):
        train(words, tmp_path / "run", [callback(diary), callback(other, "other")])
    [warning] = [line for line in caplog.messages if line.startswith("callback ")]
    assert warning.startswith("callback 'diary' (plugin mine) raised ")
    assert f" in {names[hook]}: the callback is switched off, and training continues" in warning
    assert ("ValueError: it does not work (test_callbacks.py:" in warning) is (raises is fails)
    assert diary.calls[-1].startswith(f"{hook} {at}") and other.calls[-1] == "end 7"
    state = load(tmp_path / "run" / "checkpoints" / "latest.pt")
    assert state["step"] == 7
    kept = state["callbacks"]
    assert kept["other"]["total"] == pytest.approx(other.total)
    if hook == "start":
        assert "diary" not in kept
    elif hook != "end":  # the state of the last save before that
        before = load(tmp_path / "run" / "checkpoints" / "rolling_step_000005.pt")
        assert differing(kept["diary"], before["callbacks"]["diary"]) == []


def endless() -> dict[str, Any]:
    state: dict[str, Any] = {}
    state["self"] = state
    return state


UNSAVABLE = {
    "a tuple": lambda: {"value": (1, 2)},
    "a NumPy array": lambda: {"value": np.zeros(2)},
    "a key that is a number": lambda: {1: 2},
    "not a dict": lambda: [1],
    "no end": endless,
    "a large integer": lambda: {"value": 10**5000},
    "a tensor without data": lambda: {"value": torch.zeros(2, device="meta")},
    "a complex tensor": lambda: {"value": torch.zeros(2, dtype=torch.complex64)},
    "a sparse tensor": lambda: {"value": torch.zeros(2).to_sparse()},
    "an error": lambda: 1 / 0,
}


@pytest.mark.parametrize("returns", UNSAVABLE.values(), ids=UNSAVABLE.keys())
def test_a_state_that_cannot_be_saved_keeps_the_last_good_one(
    token_data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, returns: Any
) -> None:
    class Breaks(Diary):
        def state_dict(self) -> dict[str, Any]:
            return super().state_dict() if len(self.calls) < 7 else returns()

    with caplog.at_level(logging.WARNING, logger="gpt2ckpt.training.callbacks"):
        words = [*token_data.overrides, *WORDS, "trainer.max_steps=10", "logger=none"]
        train(words, tmp_path / "run", [callback(Breaks())])
    [warning] = caplog.messages
    assert " in state_dict: the callback is switched off" in warning
    files = [tmp_path / "run" / "checkpoints" / f"rolling_step_{n:06}.pt" for n in (5, 10)]
    before, after = (load(path)["callbacks"]["diary"] for path in files)
    assert differing(before, after) == []


def recorded(run: Path, name: str) -> dict[str, Any]:
    lines = (run / "events.jsonl").read_text().splitlines()
    [found] = [event for event in map(json.loads, lines) if event["event"] == name]
    return dict(found)


@pytest.mark.parametrize(("hook", "step"), [("start", 0), ("step", 4), ("evaluation", 3)])
def test_stop_ends_the_training_as_its_last_step_does(
    token_data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, hook: str, step: int
) -> None:
    run = tmp_path / "run"
    diary = Diary(**{hook: at_step(step, lambda run: run.stop("no better\nloss"))})
    with caplog.at_level(logging.INFO):
        outcome = train([*token_data.overrides, *SEVEN], run, [callback(diary)])
    assert outcome.stopped is None
    line = f"callback 'diary' ended the run after step {step}: no better loss"
    assert caplog.messages.count(line) == 1
    state = load(run / "checkpoints" / "latest.pt")
    assert (state["step"], state["reason"]) == (step, "final")
    assert state["stopped_by"] == {"callback": "diary", "reason": "no better loss"}
    assert state["data"]["evaluated_step"] == step
    ended = recorded(run, "run_finished")
    assert (ended["callback"], ended["reason"]) == ("diary", "no better loss")
    start = start_of(["+resume=latest"], run)
    notice = finished_notice(start, validate_run(start))
    assert notice == (
        f"{run} is finished: callback 'diary' ended the run after step {step} (no better "
        "loss). To train longer, change a key of it (callback.diary.…) or resume without it "
        "(callback=[])."
    )
    train([f"+resume={run}", "+fork=true"], tmp_path / "fork")
    assert load(tmp_path / "fork" / "checkpoints" / "latest.pt")["step"] == 7


def test_a_run_that_is_killed_while_it_ends_early_ends_at_the_same_step(
    token_data: Any, tmp_path: Path
) -> None:
    """The signal comes after the request to stop: the last evaluation is missing."""

    def stop(run: Any) -> None:
        run.stop("enough")
        os.kill(os.getpid(), signal.SIGTERM)

    run = tmp_path / "run"
    diary = Diary(step=at_step(4, stop))
    outcome = train([*token_data.overrides, *SEVEN], run, [callback(diary)])
    assert outcome.stopped is signal.SIGTERM
    start = start_of(["+resume=latest"], run)
    assert finished_notice(start, validate_run(start)) is None
    again = Diary()
    assert train(["+resume=latest"], run, [callback(again)]).stopped is None
    assert again.calls == ["start 4", "evaluation 4", *again.calls[2:-1], "end 4"]
    assert [event["step"] for event in events(run)] == [1, 2, 3, 4]
    assert load(run / "checkpoints" / "latest.pt")["reason"] == "final"


def test_a_rollback_withdraws_the_request_to_stop(token_data: Any, tmp_path: Path) -> None:
    """Step 7 spoils a weight, which the save of step 10 finds; the callback asks once."""
    words, run = [*token_data.overrides, *EPOCH, "trainer.max_steps=14"], tmp_path / "run"
    asked: list[int] = []

    def stop(run: Any) -> None:
        if run.step == 10 and not asked:
            asked.append(run.step)
            run.stop("enough")

    validated = validate_run(start_of(words, tmp_path))
    with bad_block(validated, 18, spoils_a_weight):
        train(words, run, [callback(Diary(step=stop))])
    assert asked == [10]
    assert recorded(run, "run_finished")["reason"] is None
    assert load(run / "checkpoints" / "latest.pt")["step"] == 14


def test_a_state_that_a_callback_refuses_is_refused_before_anything_is_written(
    token_data: Any, tmp_path: Path
) -> None:
    class Refuses(Diary):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise KeyError("momentum")

    run = tmp_path / "run"
    train([*token_data.overrides, *SEVEN, "trainer.max_steps=4"], run, [callback(Diary())])
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    message = (
        r"callback 'diary' \(plugin mine\) refuses its state in .*latest.pt: KeyError: 'momentu"
    )
    with pytest.raises(ConfigError, match=message):
        train(["+resume=latest"], run, [callback(Refuses())])
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize("target", [None, object()])
def test_a_builder_without_hooks_is_refused(token_data: Any, tmp_path: Path, target: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot be built: TypeError: .* has none of the hooks"):
        train([*token_data.overrides, *SEVEN], tmp_path / "run", [callback(target)])
    assert not (tmp_path / "run").exists()


def test_config_of_the_run_is_read_only(token_data: Any, tmp_path: Path) -> None:
    seen = []

    def read(run: Any) -> None:
        seen.append((run.config["trainer"]["max_steps"], run.directory, run.config["optimizer"]))
        with pytest.raises(TypeError):
            run.config["trainer"]["max_steps"] = 8
        with pytest.raises(TypeError):
            run.config["optimizer"]["betas"][0] = 0.5

    train([*token_data.overrides, *SEVEN], tmp_path / "run", [callback(Diary(end=read))])
    assert seen[0][:2] == (7, tmp_path / "run")
