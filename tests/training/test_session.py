"""Complete runs in this process: resumes are exact, and failures lose no saved state."""

import errno
import json
import logging
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from real_disks import mounted
from training_helpers import differing, events, start_of, train

from gpt2ckpt.checkpoint.manager import CheckpointManager
from gpt2ckpt.checkpoint.reading import load
from gpt2ckpt.errors import ConfigError, InputError
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.parallel.process_group import DistributedGroup
from gpt2ckpt.parallel.ranks import Ranks
from gpt2ckpt.runs.lock import RunLock
from gpt2ckpt.runs.take_directory import complete_interrupted_save
from gpt2ckpt.training import session
from gpt2ckpt.training.anomalies import NonFiniteLoss, NonFiniteWeights
from gpt2ckpt.training.hardware import choose_hardware
from gpt2ckpt.training.rng import capture_generators, restore_generators
from gpt2ckpt.training.session import Session
from gpt2ckpt.training.state import TrainingState
from gpt2ckpt.training.step import HalfApplied
from gpt2ckpt.training.validate_run import finished_notice, validate_run

KINDS = {
    "adamw": ["optimizer.lr=1e-2", "trainer.max_steps=36"],
    "muon": ["optimizer=muon", "schedule=wsd", "schedule.decay_steps=9", "trainer.max_steps=36"],
    "bfloat16": ["trainer.precision=bfloat16", "trainer.max_epochs=2", "trainer.grad_accum=3"],
}
RANDOM = ["model.dropout=0.1", "trainer.eval_every=8", "trainer.eval_steps=2"]
SAVING = ["checkpoint.save_every=5", "checkpoint.keep_rolling=99"]


def final(run: Path) -> dict[str, Any]:
    """Return the final values that must be equal, however often a run was interrupted."""
    state = load(run / "checkpoints" / "latest.pt")
    kept = ("step", "epoch", "tokens_seen", "train_loss", "val_loss", "best_val_loss", "best_step")
    return {key: state[key] for key in (*kept, "data", "model", "optimizer", "rng")}


@pytest.mark.parametrize("kind", KINDS)
def test_resume_from_every_checkpoint_is_bitwise_exact(
    token_data: Any, tmp_path: Path, kind: str
) -> None:
    words = [*token_data.overrides, *RANDOM, *SAVING, *KINDS[kind]]
    whole = tmp_path / "whole"
    train(words, whole)
    losses = {event["step"]: event["train_loss"] for event in events(whole)}
    expected = final(whole)
    assert expected["data"]["position"] > 62  # in the middle of a later epoch
    sources = sorted((whole / "checkpoints").glob("*.pt"))
    assert {path.name for path in sources} >= {"epoch_00000.pt", "best_model.pt"}
    for source in [path for path in sources if load(path)["step"] < expected["step"]][1::4]:
        run = tmp_path / source.stem
        train([f"+resume={source}", "+fork=true"], run)
        assert differing(expected, final(run)) == [], source.name
        assert all(losses[event["step"]] == event["train_loss"] for event in events(run))


def test_run_resumed_many_times_equals_uninterrupted_run(token_data: Any, tmp_path: Path) -> None:
    """The run is extended several times, each time at a different place in an epoch."""
    words = [*token_data.overrides, *RANDOM, "schedule=constant", "trainer.grad_accum=2"]
    train([*words, "trainer.max_steps=24"], tmp_path / "whole")
    for steps in (3, 4, 11, 17, 24):  # without an additional evaluation at the end of each part
        more = ["+resume=auto", f"trainer.max_steps={steps}"]
        first = [] if (tmp_path / "pieces").exists() else [*words, "trainer.eval_every=0"]
        train([*first, *more], tmp_path / "pieces")
    train([*words, "trainer.eval_every=0", "trainer.max_steps=24"], tmp_path / "without")
    assert differing(final(tmp_path / "without"), final(tmp_path / "pieces")) == []
    weights = [final(tmp_path / name)["model"] for name in ("whole", "pieces")]
    assert differing(*weights) == []  # an evaluation does not change the weights
    steps = [event["step"] for event in events(tmp_path / "pieces")]
    assert steps == list(range(1, 25))


def signal_evaluations(
    monkeypatch: pytest.MonkeyPatch, number: int, when: str = "begun"
) -> list[str]:
    """Send a signal when each evaluation has `begun` or `ended`; return a list of these times."""
    real, calls = session.evaluate, []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        calls.append(when)
        if when == "begun":
            os.kill(os.getpid(), number)
        evaluation = real(*arguments, **named)
        if when == "ended":
            os.kill(os.getpid(), number)
        return evaluation

    monkeypatch.setattr(session, "evaluate", interrupted)
    return calls


def test_resume_repeats_evaluation_interrupted_by_signal(
    token_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*token_data.overrides, *RANDOM, "checkpoint.save_every=8", "trainer.max_steps=20"]
    train(words, tmp_path / "whole")
    calls = signal_evaluations(monkeypatch, signal.SIGTERM)
    assert train(words, tmp_path / "cut").stopped is signal.SIGTERM
    monkeypatch.undo()
    assert calls == ["begun"]
    assert events(tmp_path / "cut", "val_loss") == []
    assert [event["step"] for event in events(tmp_path / "cut")] == list(range(1, 9))
    [emergency] = (tmp_path / "cut" / "checkpoints").glob("emergency_*.pt")
    assert load(emergency)["reason"] == "SIGTERM"
    train([*words, "+resume=latest"], tmp_path / "cut")
    assert differing(final(tmp_path / "whole"), final(tmp_path / "cut")) == []
    for name in ("best_model.pt", "rolling_step_000008.pt"):
        states = [load(tmp_path / run / "checkpoints" / name) for run in ("whole", "cut")]
        assert differing(*[state["model"] for state in states]) == []
    for key in ("val_loss", "train_loss"):
        curves = [
            [(event["step"], event[key]) for event in events(tmp_path / run, key)]
            for run in ("whole", "cut")
        ]
        assert curves[0] == curves[1]


def test_nan_validation_loss_is_not_the_best(
    token_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*token_data.overrides, *RANDOM, "trainer.max_steps=20"]
    real, losses = session.evaluate, iter([float("nan"), 3.0, float("nan")])

    def counted(*arguments: Any, **named: Any) -> Any:
        return replace(real(*arguments, **named), loss=next(losses))

    monkeypatch.setattr(session, "evaluate", counted)
    assert train(words, tmp_path / "run").best_val_loss == 3.0
    best = load(tmp_path / "run" / "checkpoints" / "best_model.pt")
    assert (best["step"], best["val_loss"]) == (16, 3.0)
    assert not (tmp_path / "run" / "checkpoints" / "best_model_previous.pt").exists()


@pytest.mark.parametrize("moment", ["wait", "close"])
def test_signal_after_last_step_finds_finished_training(
    token_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    real = getattr(CheckpointManager, moment)

    def interrupted(manager: CheckpointManager) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(manager)

    monkeypatch.setattr(CheckpointManager, moment, interrupted)
    outcome = train([*token_data.overrides, "trainer.max_steps=4"], tmp_path / "run")
    assert outcome.stopped is None
    assert load(tmp_path / "run" / "checkpoints" / "latest.pt")["step"] == 4


def fail_in_step(monkeypatch: pytest.MonkeyPatch, at: int, then: Any) -> None:
    """Replace the model's loss by `then(loss)` from the forward pass number `at` on."""
    real, calls = GPT2.loss, []

    def loss(self: GPT2, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        value = real(self, inputs, targets)
        result: torch.Tensor = then(value) if len(calls) >= at else value
        return result

    monkeypatch.setattr(GPT2, "loss", loss)


def out_of_memory(_: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("no memory is left")


@pytest.mark.parametrize(
    ("then", "error"),
    [(lambda loss: loss * float("nan"), NonFiniteLoss), (out_of_memory, torch.OutOfMemoryError)],
    ids=["nan", "memory"],
)
def test_failed_step_leaves_emergency_checkpoint_that_resumes_exactly(
    token_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: Any, error: type
) -> None:
    words = [*token_data.overrides, "model.dropout=0.1", "trainer.max_steps=12"]
    words += ["trainer.grad_accum=2"]
    train(words, tmp_path / "whole")
    fail_in_step(monkeypatch, 14, then)  # in the second micro-batch of step 7
    with pytest.raises(error):
        train(words, tmp_path / "failed")
    monkeypatch.undo()
    [emergency] = (tmp_path / "failed" / "checkpoints").glob("emergency_*.pt")
    state = load(emergency)
    assert state["step"] == 6
    assert state["reason"].startswith(error.__name__)
    assert all(weight.isfinite().all() for weight in state["model"].values())
    assert not list(emergency.parent.glob(".*")), "the emergency reserve was not released"
    train([*words, "+resume=latest"], tmp_path / "failed")
    assert differing(final(tmp_path / "whole"), final(tmp_path / "failed")) == []


def test_failed_emergency_save_does_not_hide_original_error(
    token_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When there is no memory for a step, there may be none to capture the state."""

    def no_memory_either(*_: Any) -> None:
        raise MemoryError("nor for a save")

    words = [*token_data.overrides, "trainer.max_steps=12", *SAVING]
    fail_in_step(monkeypatch, 7, out_of_memory)
    monkeypatch.setattr(TrainingState, "is_finite", no_memory_either)
    with pytest.raises(torch.OutOfMemoryError, match="no memory is left"):
        train([*words, "checkpoint.save_every=1000"], tmp_path / "run")
    assert "the emergency save failed: MemoryError: nor for a save" in caplog.text


def test_full_disk_under_tensorboard_only_ends_tensorboard(
    token_data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    for disk in mounted(["-t", "tmpfs", "-o", "size=8k", "tmpfs"], run / "tensorboard"):
        words = [*token_data.overrides, "trainer.max_steps=80", "logger=tensorboard"]
        assert train(words, run).stopped is None
        [log] = disk.glob("events.*")
        assert log.stat().st_size > 0, "it was not there from the start"
    [text] = [record.message for record in caplog.records if "TensorBoard" in record.message]
    assert "TensorBoard failed and is disabled from now on" in text and "No space left" in text
    assert [event["step"] for event in events(run)] == list(range(1, 81))
    assert load(run / "checkpoints" / "latest.pt")["step"] == 80


def test_history_is_synced_before_its_checkpoint(
    token_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power loss could leave a checkpoint whose steps are missing in the history."""
    real, safe, saved = os.fsync, [0], []

    def fsync(descriptor: int) -> None:
        real(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name == "metrics.jsonl":
            safe.append(len(path.read_text().splitlines()))
        elif step := re.match(r"\.rolling_step_(\d+)", path.name):
            saved.append((int(step[1]), safe[-1] >= int(step[1])))

    monkeypatch.setattr(os, "fsync", fsync)
    words = [*token_data.overrides, "trainer.max_steps=6", "checkpoint.save_every=2"]
    train(words, tmp_path / "run")
    assert saved == [(2, True), (4, True), (6, True)]


def test_half_applied_step_is_never_saved(
    token_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*token_data.overrides, "optimizer=muon", "trainer.max_steps=12", *SAVING]
    real, calls = torch.optim.AdamW.step, []

    def step(self: torch.optim.AdamW, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            raise MemoryError("in the middle of the update")
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(HalfApplied):
        train(words, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    assert not list(folder.glob("emergency_*"))
    assert load(folder / "latest.pt")["step"] == 5


def test_non_finite_weights_are_never_saved(
    token_data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The step that makes the weights non-finite still has a finite loss."""
    words = [*token_data.overrides, "schedule=constant", "schedule.warmup_steps=0"]
    train([*words, "trainer.max_steps=3"], tmp_path / "run")
    before = (tmp_path / "run" / "checkpoints" / "latest.pt").read_bytes()
    more = ["+resume=latest", "optimizer.lr=1e39", "trainer.max_steps=9", "checkpoint.save_every=1"]
    with caplog.at_level(logging.ERROR), pytest.raises(NonFiniteWeights):
        train(more, tmp_path / "run")
    assert "step 4 is not saved: its weights are not finite" in caplog.text
    assert (tmp_path / "run" / "checkpoints" / "latest.pt").read_bytes() == before
    assert not list((tmp_path / "run" / "checkpoints").glob("emergency_*"))


def test_resume_detects_changed_data_under_same_name(token_data: Any, tmp_path: Path) -> None:
    mine = tmp_path / "mine.bin"
    mine.write_bytes(token_data.train.read_bytes())
    words = [*token_data.overrides, f"data.train={mine}", "trainer.max_steps=2"]
    run = tmp_path / "run"
    train(words, run)
    mine.write_bytes(mine.read_bytes()[:-2])
    with pytest.raises(InputError, match="the data has changed since the checkpoint was saved"):
        validate_run(start_of(["+resume=latest", "trainer.max_steps=4"], run))
    other = tmp_path / "other.bin"
    mine.rename(other)
    train(["+resume=latest", "trainer.max_steps=4", f"data.train={other}"], run)
    assert final(run)["step"] == 4


def test_finished_run_names_key_to_raise(token_data: Any, tmp_path: Path) -> None:
    for end, key in (("max_steps=3", "trainer.max_steps"), ("max_epochs=1", "trainer.max_epochs")):
        run = tmp_path / end.partition("=")[0]
        words = [*token_data.overrides, f"trainer.{end}", "trainer.batch_size=31"]
        fresh = start_of(words, run)
        assert finished_notice(fresh, validate_run(fresh)) is None
        train(words, run)
        again = start_of(["+resume=latest"], run)
        notice = finished_notice(again, validate_run(again))
        assert notice is not None
        assert f"raise {key} (now {end.partition('=')[2]})" in notice
        more = start_of(["+resume=latest", f"{key}=5"], run)
        assert finished_notice(more, validate_run(more)) is None


def test_max_steps_below_saved_step_is_reported_as_past(token_data: Any, tmp_path: Path) -> None:
    train([*token_data.overrides, "trainer.max_steps=3"], tmp_path / "run")
    lower = start_of(["+resume=latest", "trainer.max_steps=1"], tmp_path / "run")
    assert lower.state is not None
    lower.state.data.evaluated_step = 2  # as if the run had stopped before the evaluation
    notice = finished_notice(lower, validate_run(lower))
    assert notice is not None and "step 3 is past its end" in notice


def cut_off_at_step_3(run: Path) -> None:
    """Link the names of the last save, except its own file, to the checkpoint of step 3."""
    folder = run / "checkpoints"
    for name in ("latest.pt", "best_model.pt", "best_model_backup.pt", "rolling_last_backup.pt"):
        (folder / name).unlink()
        (folder / name).hardlink_to(folder / "rolling_step_000003.pt")


def test_resume_completes_interrupted_save_with_its_record(token_data: Any, tmp_path: Path) -> None:
    words = [*token_data.overrides, "trainer.max_steps=6", "trainer.eval_every=3"]
    run = tmp_path / "run"
    train([*words, "checkpoint.save_every=3"], run)
    folder = run / "checkpoints"
    saved = {path.name: path.read_bytes() for path in folder.iterdir()}
    cut_off_at_step_3(run)
    train(["+resume=auto", "trainer.max_steps=7", "optimizer.lr=9", "trainer.grad_accum=3"], run)
    for name in ("best_model.pt", "best_model_backup.pt", "rolling_step_000006.pt"):
        assert (folder / name).read_bytes() == saved[name]
    assert load(folder / "latest_backup.pt")["step"] == 6
    assert load(folder / "latest.pt")["config"]["optimizer"]["lr"] == 9


def test_finished_run_changes_only_to_complete_interrupted_save(
    token_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*token_data.overrides, "trainer.max_steps=6", "trainer.eval_every=3"]
    run = tmp_path / "run"
    signal_evaluations(
        monkeypatch, signal.SIGUSR1, "ended"
    )  # an emergency save in addition to the regular one
    train([*words, "checkpoint.save_every=3"], run)
    folder = run / "checkpoints"
    assert list(folder.glob("emergency_step_000006*"))
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    with (start := start_of(["+resume=auto", "optimizer.lr=9"], run, locks=True)).held():
        assert complete_interrupted_save(start) == []
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == before
    cut_off_at_step_3(run)
    with (start := start_of(["+resume=auto"], run, locks=True)).held():
        [line] = complete_interrupted_save(replace(start, unwritable=InputError("it is read-only")))
        assert "cannot be completed (it is read-only)" in line and "its state is safe in" in line
        [line] = complete_interrupted_save(start)
    assert "completed the interrupted save of step 6: best_model.pt, latest.pt" in line
    with (start := start_of(["+resume=auto"], run, locks=True)).held():
        assert complete_interrupted_save(start) == []
    assert load(folder / "latest.pt")["config"]["optimizer"]["lr"] != 9


def test_epoch_end_with_other_batch_size_keeps_its_number(
    token_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation after step 2 is done by the resume, which has sixteen times the batch size."""
    words = [*token_data.overrides, "trainer.eval_every=2", "checkpoint.save_epochs=true"]
    run = tmp_path / "run"
    signal_evaluations(monkeypatch, signal.SIGTERM)
    train([*words, "trainer.max_steps=2"], run)
    monkeypatch.undo()
    train(["+resume=auto", "trainer.max_steps=3", "trainer.grad_accum=16"], run)
    assert not [path.name for path in (run / "checkpoints").iterdir() if "-" in path.name]


def test_resume_saves_epoch_end_after_interrupted_evaluation(
    token_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch of 62 blocks has two steps; a signal interrupts the evaluation after the second."""
    words = [*token_data.overrides, "trainer.batch_size=31", "trainer.eval_every=2"]
    run = tmp_path / "run"
    signal_evaluations(monkeypatch, signal.SIGTERM)
    assert train([*words, "trainer.max_steps=3"], run).stopped is signal.SIGTERM
    monkeypatch.undo()
    assert not list((run / "checkpoints").glob("epoch_*"))
    train(["+resume=auto"], run)
    [epoch] = (run / "checkpoints").glob("epoch_*")
    assert (epoch.name, load(epoch)["step"]) == ("epoch_00000.pt", 2)


def test_message_names_the_limit_that_was_reached(token_data: Any, tmp_path: Path) -> None:
    words = [*token_data.overrides, "trainer.max_steps=3", "trainer.max_epochs=9"]
    train(words, tmp_path / "run")
    again = start_of(["+resume=latest"], tmp_path / "run")
    notice = finished_notice(again, validate_run(again))
    assert notice is not None and "raise trainer.max_steps (now 3)" in notice


def test_repeated_steps_are_compared(
    token_data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = [*token_data.overrides, "trainer.max_steps=9", *SAVING]
    train(words, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    back = [f"+resume={tmp_path / 'run' / 'checkpoints' / 'rolling_step_000005.pt'}"]
    with caplog.at_level(logging.INFO):
        train(back, tmp_path / "run")
        assert "replay: 4 steps identical" in caplog.text
        events_ = [json.loads(line) for line in metrics.read_text().splitlines()]
        events_[6]["train_loss"] += 1e-9
        metrics.write_text("".join(json.dumps(event) + "\n" for event in events_))
        train(back, tmp_path / "run")
    assert "replay: step 7 differs: loss " in caplog.text
    assert [event["step"] for event in events(tmp_path / "run")] == list(range(1, 10))


def test_checkpoint_off_creates_no_folder(token_data: Any, tmp_path: Path) -> None:
    words = [*token_data.overrides, "trainer.max_steps=2", "checkpoint=off"]
    train(words, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_too_small_vocabulary_names_the_file(token_data: Any, tmp_path: Path) -> None:
    words = [*token_data.overrides, "model.vocab_size=20"]
    with pytest.raises(InputError, match=r"train\.bin: token \d+ .*model\.vocab_size=20"):
        validate_run(start_of(words, tmp_path / "run"))
    with pytest.raises(ConfigError, match="smaller than the vocabulary of GPT-2's tokenizer"):
        validate_run(start_of(["model.vocab_size=20"], tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_each_rank_draws_its_own_numbers_seeded_by_the_step(
    token_data: Any, tmp_path: Path
) -> None:
    """Checkpoints hold the first rank's generators only; equal seeds would drop the same units."""
    start = start_of([*token_data.overrides, "trainer.max_steps=2"], tmp_path / "run")
    validated, hardware = validate_run(start), choose_hardware("cpu", "float32", 1)

    def drawn(rank: int, step: int) -> list[float]:
        group = DistributedGroup(Ranks(rank, rank, 3, "127.0.0.1", 1))
        reseed = Session(tmp_path / "run", start, validated, hardware, group)._reseeding()
        torch.manual_seed(5)
        reseed(step)
        return [float(number) for number in torch.rand(4)]

    before = capture_generators()
    numbers = [drawn(rank, step) for rank in range(3) for step in (7, 8)]
    assert numbers[4:] == [drawn(2, 7), drawn(2, 8)]
    restore_generators(before)
    assert numbers[0] == numbers[1], "those of the first go on as they are"
    assert len({tuple(one) for one in numbers}) == 5


def test_run_with_stolen_lock_saves_nothing(
    token_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(lock: RunLock) -> None:
        raise OSError(errno.EBUSY, "it is being trained by another process")

    monkeypatch.setattr(RunLock, "check", check)
    with pytest.raises(InputError, match="the last save, at step 4, failed"):
        train([*token_data.overrides, *SAVING, "trainer.max_steps=4"], tmp_path / "run")
    assert list((tmp_path / "run" / "checkpoints").glob("*.pt")) == []
