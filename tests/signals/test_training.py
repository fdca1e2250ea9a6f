"""Tests of signals during training."""

import os
import signal
import subprocess
import sys
import time

import pytest

from gpt2ckpt.signals.early import exit_code
from gpt2ckpt.signals.training import COPIES_WITHIN, TrainingSignals

TWICE = """
import os, signal, sys
from gpt2ckpt.signals.training import TrainingSignals
number = getattr(signal, sys.argv[1])
with TrainingSignals() as signals:
    os.kill(os.getpid(), number)
    print("stopping", signals.stop is number, flush=True)
    os.kill(os.getpid(), number)
    print("still here")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_requests_a_stop_and_raises_nothing(number: signal.Signals) -> None:
    before = signal.signal(number, lambda *_: None)
    try:
        with TrainingSignals() as signals:
            assert signals.stop is None
            os.kill(os.getpid(), number)
            assert signals.stop is number
            assert not signals.take_save_request()
    finally:
        signal.signal(number, before)


def test_sigusr1_requests_one_save_and_no_stop() -> None:
    with TrainingSignals() as signals:
        for _ in range(2):  # two requests before a save are one
            os.kill(os.getpid(), signal.SIGUSR1)
        assert signals.take_save_request()
        assert not signals.take_save_request()
        assert signals.stop is None


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_repeated_signal_ends_the_process_at_once(name: str, code: int) -> None:
    command = [sys.executable, "-c", TWICE, name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert done.stdout == "stopping True\n"


LONG_LINE = """
import hashlib, sys
from gpt2ckpt.signals.training import TrainingSignals, Watchdog
signals = TrainingSignals(None if sys.argv[1] == "alone" else lambda numbers: numbers)
if sys.argv[2] == "first":
    signals.newest_checkpoint_message = lambda: "The newest checkpoint is latest.pt"
with signals, Watchdog(signals, None, lambda number: "finishing this step"):
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # Python's handlers wait for its end
"""


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", LONG_LINE, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True)
    assert process.stdout and process.stdout.readline() == "begun\n"
    return process


def test_signal_is_acknowledged_at_once_during_a_long_step() -> None:
    process = start("alone", "first")
    process.send_signal(signal.SIGINT)
    assert process.stdout and process.stdout.readline() == "SIGINT: finishing this step\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    message = "SIGINT received again: stopped without saving. The newest checkpoint is latest.pt\n"
    assert errors == message


def test_copy_of_a_signal_by_the_launcher_does_not_count() -> None:
    process = start("several ranks", "another")
    process.send_signal(signal.SIGTERM)
    assert process.stdout and process.stdout.readline() == "SIGTERM: finishing this step\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(COPIES_WITHIN + 0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 143


OTHERS = """
import os, signal
from gpt2ckpt.signals.training import TrainingSignals
for largest in (None, lambda numbers: numbers):
    with TrainingSignals(largest) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT if largest is None else signal.SIGTERM)
        print(signals.agree().name)
"""


def test_different_signal_or_copy_does_not_end_the_process() -> None:
    """On Ctrl+C, the terminal signals the rank, and torchrun signals it again."""
    command = [sys.executable, "-c", OTHERS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "SIGINT\nSIGTERM\n")


def test_request_to_one_rank_holds_for_all_ranks() -> None:
    """`others` are the numbers of a different rank; this rank has received no signal."""
    others = [0, 0, 0]
    with TrainingSignals(
        lambda own: [max(pair) for pair in zip(own, others, strict=True)]
    ) as signals:
        assert signals.agree() is None
        assert not signals.take_save_request()
        others[:] = [0, 1, 0]
        assert signals.agree() is None
        assert signals.take_save_request()
        others[:] = [signal.SIGTERM, 0, 0]
        assert signals.agree() is signal.SIGTERM
        others[:] = [0, 0, 1]
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.stop is signal.SIGTERM, "alone it must not stop: the others train on"
        assert not signals.ends_early, "agreed only by the next call of agree"
        assert signals.agree() is signal.SIGINT
        assert signals.take_save_request()
        assert signals.ends_early


def test_replaced_handlers_are_called_and_restored() -> None:
    """The handler of a launcher puts the job back into its queue."""
    received: list[int] = []

    def launchers(number: int, frame: object) -> None:
        received.append(number)

    before, before_int = signal.signal(signal.SIGTERM, launchers), signal.getsignal(signal.SIGINT)
    try:
        with TrainingSignals() as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.stop is signal.SIGTERM
            assert received == []  # what it ends is not saved yet
            signals.call_previous_handlers()
            assert received == [signal.SIGTERM]
        assert received == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is launchers
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signal.getsignal(signal.SIGINT) is before_int


def test_exit_codes_are_those_of_a_shell() -> None:
    assert [exit_code(number) for number in (signal.SIGINT, signal.SIGTERM)] == [130, 143]
