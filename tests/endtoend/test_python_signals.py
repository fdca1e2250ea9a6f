"""Signals in a program that trains by `gpt2ckpt.train`: saved first, then the program decides."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import (
    Done,
    finish,
    latest,
    run_program,
    same_bits,
    start_program,
    steps_done,
    succeed,
    wait_until,
)

# What the programs begin with; their steps take at least ten milliseconds.
SLOW = """
import json, os, signal, sys, threading, time
import gpt2ckpt
from gpt2ckpt.training.step import Stepper
overrides, kind = json.loads(sys.argv[1]), sys.argv[2]
step = Stepper.step
def slow(self, state, position):
    time.sleep(0.01)
    return step(self, state, position)
Stepper.step = slow
called = []
def handler(number, frame):
    called.append(signal.Signals(number).name)
def trained_three_steps():
    path = "run/metrics.jsonl"
    return os.path.exists(path) and '"step": 3' in open(path).read()
def saved():
    run = gpt2ckpt.open_run("run")
    return [c["reason"] for c in run.checkpoints() if c["group"] == "emergency"]
"""
LONG = ["trainer.max_steps=100000", "hydra.run.dir=run", "checkpoint.save_every=100000"]


def interrupt(
    text: str, token_data: Any, folder: Path, kind: str, *numbers: signal.Signals
) -> Done:
    """Start a program, send it signals once it trains, and wait for its end."""
    overrides = json.dumps([*token_data.overrides, *LONG])
    process = start_program(SLOW + text, folder, overrides, kind)
    wait_until(process, lambda: steps_done(folder / "run") >= 3)
    for number in numbers:
        process.send_signal(number)
    return finish(process)


CTRL_C = """
before = signal.getsignal(signal.SIGINT)
try:
    gpt2ckpt.train(overrides)
except KeyboardInterrupt:
    print("interrupted", saved())
print("same handler", signal.getsignal(signal.SIGINT) is before)
stopped = gpt2ckpt.open_run("run")
print("finished", stopped.is_finished, [e["event"] for e in stopped.events()][-2:])
steps = stopped.history()[-1]["step"] + 2
run = gpt2ckpt.train(["+resume=latest", "hydra.run.dir=run", f"trainer.max_steps={steps}"])
print("finished", run.is_finished, run.history()[-1]["step"] == steps)
once = [o for o in overrides if "max_steps" not in o and "run.dir" not in o]
gpt2ckpt.train([*once, f"trainer.max_steps={steps}", "hydra.run.dir=once", "schedule=constant"])
"""


def test_ctrl_c_saves_and_raises_keyboard_interrupt_and_the_next_call_resumes(
    token_data: Any, tmp_path: Path
) -> None:
    text = 'overrides += ["schedule=constant"]\n' + CTRL_C
    done = succeed(interrupt(text, token_data, tmp_path, "", signal.SIGINT))
    for expected in (
        "interrupted ['SIGINT']",
        "same handler True",
        "finished False ['checkpoint_saved', 'run_stopped']",
        "finished True True",
    ):
        assert expected in done.out.splitlines()
    resumed, once = latest(tmp_path / "run"), latest(tmp_path / "once")
    assert same_bits(resumed["model"], once["model"])
    assert same_bits(resumed["optimizer"], once["optimizer"])


DEFAULT = """
gpt2ckpt.train(overrides)
print("not reached")
"""


def test_default_action_of_sigterm_ends_the_program_after_the_save(
    token_data: Any, tmp_path: Path
) -> None:
    done = interrupt(DEFAULT, token_data, tmp_path, "", signal.SIGTERM)
    assert done.code == -signal.SIGTERM
    assert "not reached" not in done.out
    assert latest(tmp_path / "run")["reason"] == "SIGTERM"
    assert not (tmp_path / "run" / "run.lock").exists()


HANDLED = """
from pathlib import Path
def stop(number, frame):
    print("handler", signal.Signals(number).name, saved(), Path("run/run.lock").exists())
    if kind == "raises":
        raise RuntimeError("the host stops")
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, handler)
try:
    run = gpt2ckpt.train(overrides)
    print("returned", run.is_finished, called)
except RuntimeError as error:
    print("raised", error, called)
print("kept", signal.getsignal(signal.SIGTERM) is stop)
"""


@pytest.mark.parametrize("kind", ["returns", "raises"])
def test_handler_of_the_program_is_called_after_the_save(
    kind: str, token_data: Any, tmp_path: Path
) -> None:
    done = succeed(interrupt(HANDLED, token_data, tmp_path, kind, signal.SIGTERM))
    lines = done.out.splitlines()
    assert "handler SIGTERM ['SIGTERM'] False" in lines
    assert ("returned False []" if kind == "returns" else "raised the host stops []") in lines
    assert "kept True" in lines


AGAIN = """
def wait(self, state, position):
    if state.counters.step == 3:
        print("waiting", flush=True)
        while True:  # a step that only a second signal ends
            time.sleep(0.01)
    return step(self, state, position)
Stepper.step = wait
def twice():
    while not trained_three_steps():
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
    while "signal_received" not in open("run/events.jsonl").read():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=twice, daemon=True).start()
try:
    gpt2ckpt.train(overrides)
except KeyboardInterrupt:
    print("interrupted", saved())
    print("unlocked", not os.path.exists("run/run.lock"))
Stepper.step = step
run = gpt2ckpt.train([*overrides, "+resume=auto", "trainer.max_steps=5"])
print("next", run.is_finished)
"""


def test_second_ctrl_c_stops_at_once_without_a_save(token_data: Any, tmp_path: Path) -> None:
    overrides = json.dumps([*token_data.overrides, *LONG])
    done = run_program(SLOW + AGAIN, tmp_path, overrides, "")
    for expected in (
        "SIGINT received again: stopped without saving",
        "interrupted []",
        "unlocked True",
        "next True",
    ):
        assert expected in done.out.splitlines()


OTHERS = """
import asyncio, faulthandler
signal.signal(signal.SIGHUP, signal.SIG_IGN)
if kind == "faulthandler":
    faulthandler.register(signal.SIGUSR1, file=open("stacks", "w"))
elif kind == "python":
    signal.signal(signal.SIGUSR1, handler)
def send():
    while not trained_three_steps():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGHUP)
threading.Thread(target=send, daemon=True).start()
short = [o for o in overrides if "max_steps" not in o]
async def main():
    loop = asyncio.get_running_loop()
    if kind == "asyncio":
        loop.add_signal_handler(signal.SIGUSR1, called.append, "SIGUSR1")
    run = gpt2ckpt.train([*short, "trainer.max_steps=60"])
    await asyncio.sleep(0.2)
    print("finished", run.is_finished, called, saved())
asyncio.run(main())
if kind == "faulthandler":
    os.kill(os.getpid(), signal.SIGUSR1)
    print("stacks", open("stacks").read().count("program.py"))
"""


@pytest.mark.parametrize("kind", ["default", "python", "asyncio", "faulthandler"])
def test_sigusr1_saves_and_reaches_the_program_and_ignored_signals_stay_ignored(
    kind: str, token_data: Any, tmp_path: Path
) -> None:
    overrides = json.dumps([*token_data.overrides, *LONG])
    out = run_program(SLOW + OTHERS, tmp_path, overrides, kind).out
    calls = ["SIGUSR1"] if kind in ("python", "asyncio") else []
    saves = [] if kind == "faulthandler" else ["SIGUSR1"]
    assert f"finished True {calls} {saves}" in out.splitlines()
    if kind == "faulthandler":  # its handler, in C, was not replaced
        [line] = [line for line in out.splitlines() if line.startswith("stacks")]
        assert int(line.split()[1]) >= 2


EVENT_LOOP = """
import asyncio
async def main():
    run = gpt2ckpt.train(overrides)
    print("returned", run.is_finished, saved(), flush=True)
    await asyncio.sleep(60)
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("cancelled")
"""


def test_ctrl_c_in_an_event_loop_saves_and_cancels_its_task(
    token_data: Any, tmp_path: Path
) -> None:
    done = succeed(interrupt(EVENT_LOOP, token_data, tmp_path, "", signal.SIGINT))
    assert "returned False ['SIGINT']" in done.out.splitlines()
    assert done.out.splitlines()[-1] == "cancelled"
