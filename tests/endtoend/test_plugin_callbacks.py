"""Callbacks and loggers of plugins by the command line: kills, signals, sweeps, ranks, errors.

tests/training/test_callbacks.py tests the hooks; the plugins are those of docs/extending.md.
"""

import csv
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from commands import (
    Done,
    events,
    finish,
    latest,
    run,
    same_bits,
    start,
    steps_done,
    succeed,
    tree,
    wait_until,
)
from extending import write_examples
from test_torchrun import finish as finish_group
from test_torchrun import kill as kill_group
from test_torchrun import start as start_group

from gpt2ckpt.runs.events import read_events

ON = ["plugins=[early_stopping,csv_logger]", "callback=early_stopping", "logger=csv"]
STOPS = ["callback.early_stopping.patience=2", "callback.early_stopping.min_delta=0.05"]
EXACT = ("model", "optimizer", "rng", "data", "step", "callbacks", "stopped_by", "reason")


@pytest.fixture
def overrides(token_data: Any, tmp_path: Path) -> list[str]:
    """The plugins in the current directory, and a training that they end after some evaluations."""
    write_examples(tmp_path, "early_stopping", "csv_logger")
    words = [word for word in token_data.overrides if word != "logger=none"]
    more = ["trainer.max_steps=200", "trainer.eval_every=5", "trainer.eval_steps=2"]
    more += ["optimizer.lr=1e-2", "checkpoint.save_every=7", "model.dropout=0.1"]
    return [*words, *ON, *STOPS, *more]


def rows(run_directory: Path) -> list[list[str]]:
    with (run_directory / "losses.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_killed_run_with_plugins_ends_as_an_uninterrupted_one(
    overrides: list[str], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    out = succeed(run("train", [*overrides, "hydra.run.dir=whole"], tmp_path)).out
    end = latest(whole)
    assert 10 < end["step"] < 200
    assert out.count(f"callback 'early_stopping' ended the run after step {end['step']}: ") == 1
    for step in (4, 9):
        process = start("train", [*overrides, "hydra.run.dir=killed", "+resume=auto"], tmp_path)
        wait_until(process, lambda step=step: steps_done(killed) > step)  # type: ignore[misc]
        process.kill()
        process.wait()
    succeed(run("train", [*overrides, "hydra.run.dir=killed", "+resume=auto"], tmp_path))
    again = latest(killed)
    assert all(same_bits(again[key], end[key]) for key in EXACT)
    assert events(killed) == events(whole)
    assert rows(killed) == rows(whole)
    assert [int(row[0]) for row in rows(whole)[1:] if row[1]] == list(range(1, end["step"] + 1))
    ended = read_events(killed)[-1]
    assert (ended["event"], ended["callback"]) == ("run_finished", "early_stopping")
    before = tree(killed)
    done = succeed(run("train", [*ON[:1], "+resume=latest", "hydra.run.dir=killed"], tmp_path))
    assert (
        "is finished: callback 'early_stopping' ended the run" in done.out
        and tree(killed) == before
    )


def test_sweep_over_a_key_of_a_callback(overrides: list[str], tmp_path: Path) -> None:
    words = ["-m", *overrides, "callback.early_stopping.patience=1,2,3", "hydra.sweep.dir=sweep"]
    succeed(run("train", words, tmp_path))
    steps = [latest(tmp_path / "sweep" / str(job))["step"] for job in range(3)]
    assert steps == sorted(steps) and steps[0] < steps[2] < 200
    before = tree(tmp_path / "sweep" / "2")
    again = succeed(run("train", [*words, "+resume=auto"], tmp_path)).out
    assert again.count("finished before") == 3, again
    assert tree(tmp_path / "sweep" / "2") == before


def test_drill_with_plugins_is_exact(overrides: list[str], tmp_path: Path) -> None:
    more = ["callback.early_stopping.patience=99"]
    done = succeed(run("drill", [*overrides, *more], tmp_path))
    assert "exact" in done.out and "NO:" not in done.out
    more = ["callback.early_stopping.min_delta=9"]  # no evaluation is an improvement
    done = run("drill", [*overrides, *more], tmp_path)
    assert done.code == 1
    assert done.message.startswith("callback 'early_stopping' ended a run of the drill at step ")


def test_two_ranks_end_early_together(overrides: list[str], tmp_path: Path) -> None:
    words = [*overrides, "trainer.batch_size=2", "trainer.grad_accum=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = finish_group(start_group([*words, "hydra.run.dir=whole"], tmp_path))
    assert done.code == 0, done.err
    assert done.out.count("callback 'early_stopping' ended the run") == 1
    group = start_group([*words, "hydra.run.dir=killed"], tmp_path)
    end = time.monotonic() + 300
    while steps_done(killed) < 9 and group.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    kill_group(group)
    done = finish_group(start_group([*words, "hydra.run.dir=killed", "+resume=auto"], tmp_path))
    assert done.code == 0, done.err
    assert all(same_bits(latest(killed)[key], latest(whole)[key]) for key in EXACT)


BROKEN = """
import os, sys, time
from dataclasses import dataclass
from pathlib import Path
from gpt2ckpt import extend

@dataclass
class Config:
    does: str = extend.setting("nothing", effect="harmless")  # what goes wrong

class Broken:
    def __init__(self, config):
        self.does = config.does
    def on_run_start(self, run):
        if self.does == "stop":
            run.stop("nothing to do")
    def on_step_end(self, run, metrics):
        if self.does == "raise" and run.step == 3:
            raise ValueError("it does not work")
        if self.does == "hang" and run.step == 3:
            Path("hangs").touch()
            time.sleep(600)
        if self.does == "wait" and run.step == 3:
            Path("hangs").touch()
            while not Path("goes_on").exists():
                time.sleep(0.01)
    def state_dict(self):
        return {}
    def load_state_dict(self, state):
        if self.does == "refuse":
            raise KeyError("best")

@extend.callback("broken", Config)
def callback(config):
    return Broken(config)

class BrokenLogger(Broken):
    def log(self, event):
        if self.does == "raise":
            raise ValueError("it does not work")
        if self.does == "hang":
            time.sleep(600)

@extend.logger("broken", Config)
def logger(config, directory):
    return BrokenLogger(config)
"""


@pytest.fixture
def broken(token_data: Any, tmp_path: Path) -> list[str]:
    (tmp_path / "broken.py").write_text(BROKEN)
    more = ["plugins=[broken]", "trainer.max_steps=10", "hydra.run.dir=run"]
    return [*token_data.overrides, *more, "checkpoint.save_every=2"]


def warned(done: Done, of: str) -> str:
    [line] = [line for line in (done.out + done.err).splitlines() if line.startswith(of)]
    return line


@pytest.mark.parametrize("ranks", [1, 2])
def test_callback_that_raises_does_not_end_the_run(
    broken: list[str], tmp_path: Path, ranks: int
) -> None:
    words = [*broken, "callback=broken", "callback.broken.does=raise"]
    done = (
        run("train", words, tmp_path) if ranks == 1 else finish_group(start_group(words, tmp_path))
    )
    succeed(done)
    assert warned(done, "callback 'broken' (plugin broken)") == (
        "callback 'broken' (plugin broken) raised ValueError: it does not work (broken.py:19) in "
        "on_step_end: the callback is switched off, and training continues"
    )
    assert latest(tmp_path / "run")["step"] == 10


@pytest.mark.parametrize("does", ["raise", "hang"])
def test_logger_that_fails_does_not_end_or_delay_the_run(
    broken: list[str], tmp_path: Path, does: str
) -> None:
    done = succeed(run("train", [*broken, "logger=broken", f"logger.does={does}"], tmp_path))
    assert latest(tmp_path / "run")["step"] == 10
    line = warned(done, "logger 'broken' (plugin broken)")
    expected = {"raise": "it does not work", "hang": "was abandoned"}
    assert expected[does] in line
    assert "waiting" not in done.out.partition("step 10/10")[0]


def test_signal_during_a_hook_ends_the_run_after_it(broken: list[str], tmp_path: Path) -> None:
    words = [*broken, "callback=broken", "callback.broken.does=wait"]
    process = start("train", words, tmp_path)
    wait_until(process, (tmp_path / "hangs").exists)
    process.send_signal(signal.SIGINT)
    (tmp_path / "goes_on").touch()
    done = finish(process)
    assert done.code == 130 and "KeyboardInterrupt" not in done.err
    state = latest(tmp_path / "run")
    assert (state["step"], state["reason"]) == (3, "SIGINT")
    succeed(run("train", [*broken[:-1], "+resume=latest"], tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_a_hook_that_hangs(
    broken: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    words = [*broken, "callback=broken", "callback.broken.does=hang"]
    process = start("train", words, tmp_path)
    wait_until(process, (tmp_path / "hangs").exists)
    [events] = tmp_path.rglob("events.jsonl")
    wait_until(process, lambda: "checkpoint_saved" in events.read_text())
    process.send_signal(number)
    wait_until(process, lambda: "signal_received" in events.read_text())
    process.send_signal(number)
    assert finish(process).code == 128 + number
    assert latest(tmp_path / "run")["step"] == 2


def test_refused_state_leaves_the_directory_as_it_is(broken: list[str], tmp_path: Path) -> None:
    words = [*broken, "callback=broken"]
    succeed(run("train", words, tmp_path))
    before = tree(tmp_path)
    more = ["callback.broken.does=refuse", "trainer.max_steps=12", "+resume=latest"]
    done = run("train", [*words, *more], tmp_path)
    assert done.code == 2 and tree(tmp_path) == before
    assert done.message.startswith("callback 'broken' (plugin broken) refuses its state in ")
    assert "latest.pt: KeyError: 'best' (broken.py:" in done.message


def test_callback_can_end_a_run_before_its_first_step(broken: list[str], tmp_path: Path) -> None:
    words = [*broken, "callback=broken", "callback.broken.does=stop"]
    done = succeed(run("train", words, tmp_path))
    assert "callback 'broken' ended the run after step 0: nothing to do" in done.out
    state = latest(tmp_path / "run")
    assert (state["step"], state["reason"]) == (0, "final")
    assert steps_done(tmp_path / "run") == 0


def test_wrong_keys_of_callbacks_are_explained(overrides: list[str], tmp_path: Path) -> None:
    on, name = ON[0], "callback.early_stopping"
    refused = {
        "callback.patience=3": f"Did you mean {name}.patience",
        f"{name}.patiense=3": f"Did you mean {name}.patience",
        f"{name}.patience=many": f"{name}.patience must be a whole number",
        f"{name}.patience=0": "patience is 0; it must be at least 1",
        "callback=early_stoping": "Did you mean callback=early_stopping",
        "callback=null": "give callback=NAME or callback=[]",
    }
    for wrong, expected in refused.items():
        done = run("train", [on, "callback=early_stopping", wrong], tmp_path)
        assert done.code == 2 and expected in done.message, done.err
    done = run("train", ["callback=early_stopping"], tmp_path)
    assert done.code == 2 and "no plugin that has callbacks is switched on" in done.message
    assert not (tmp_path / "outputs").exists()
    page = succeed(run("train", [on, "callback=early_stopping", "--help"], tmp_path)).out
    assert f"{name}.patience=3" in page


def test_changed_callbacks_are_reported_at_a_resume(broken: list[str], tmp_path: Path) -> None:
    """Added, changed and left out; a run without callbacks does not mention them."""
    words = [word for word in broken if not word.startswith("plugins=")]
    succeed(run("train", words, tmp_path))
    assert "callback" not in latest(tmp_path / "run")["config"]
    more, on = ["hydra.run.dir=run", "+resume=latest"], "plugins=[broken]"
    expected = {
        "callback=broken": "callback.broken.does: null → nothing  (harmless)",
        "callback.broken.does=none": "callback.broken.does: nothing → none  (harmless)",
        "callback=[]": "the saved state of callback 'broken' is dropped",
    }
    for number, (word, line) in enumerate(expected.items(), 1):
        done = succeed(
            run("train", [*more, on, word, f"trainer.max_steps={10 + number}"], tmp_path)
        )
        assert line in done.out.splitlines(), done.out
    assert "callback.broken.does: none → null  (harmless)" in done.out
    assert "callbacks" not in latest(tmp_path / "run")
    paths = [f"run/checkpoints/rolling_step_0000{step}.pt" for step in (11, 12)]
    compared = run("checkpoints", ["diff", *paths], tmp_path)
    assert "callback.broken.does: nothing → none" in compared.out
    command = run("checkpoints", ["resume-command", paths[1]], tmp_path).out
    assert "'callback=[broken]'" in command and "callback.broken.does=none" in command
    started = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[0])
    assert started["event"] == "run_started"
