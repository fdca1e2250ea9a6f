"""Console output with a reader that has stopped, is slow, or reads normally."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from gpt2ckpt.console import LIMIT, printable
from gpt2ckpt.worker import Worker

MUCH = """
import sys
from gpt2ckpt import console
from gpt2ckpt.exits import reported_errors
with reported_errors():
    console.install()
    for number in range(int(sys.argv[1])):
        print(f"line {number}", flush=True)
        print(f"error {number}", file=sys.stderr)
    print("end of it, not flushed")
    sys.exit(7)
"""


def command(script: str, *args: object) -> list[str]:
    return [sys.executable, "-c", script, *map(str, args)]


def test_active_reader_gets_all_lines_in_order() -> None:
    done = subprocess.run(
        command(MUCH, 5000),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 60},
    )
    pairs = [line for number in range(5000) for line in (f"line {number}", f"error {number}")]
    assert done.stdout.splitlines() == [*pairs, "end of it, not flushed"]
    assert done.returncode == 7


def test_stopped_reader_does_not_block_the_process() -> None:
    """The output exceeds the pipe and the queue; then the reader returns."""
    read, write = os.pipe()
    process = subprocess.Popen(command(MUCH, 60_000), stdout=write, stderr=subprocess.DEVNULL)
    os.close(write)
    assert process.wait(timeout=120) == 7
    with os.fdopen(read) as pipe:
        lines = pipe.read().splitlines()
    whole = lines[:-1]  # the kernel may have taken a part of the last one
    assert whole == [f"line {number}" for number in range(len(whole))]
    assert 1000 < len(whole) < 60_000


SLOW = """
import os, sys, time
from gpt2ckpt import console
console.install()
for number in range(0, 20_000, 2):
    sys.stdout.write(f"line {number}\\nline {number + 1}\\n")
    sys.stdout.flush()
print("written", file=sys.stderr, flush=True)
time.sleep(0.1)
sys.stdin.readline()
print("later", flush=True)
console.drain()
"""


def test_dropped_lines_are_counted_in_their_place() -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command(SLOW), **pipes, text=True)
    assert process.stdin and process.stderr
    assert process.stderr.readline() == "written\n"  # and stdout was not read
    out, _ = process.communicate("\n", timeout=60)
    *lines, notice, last = out.splitlines()
    assert last == "later"
    assert lines == [f"line {number}" for number in range(len(lines))]
    assert len(lines) > LIMIT
    left_out = 20_000 - len(lines)
    assert notice == f"[{left_out} lines not shown: the output was not read; see train.log]"


STUCK = """
import pathlib, sys
from gpt2ckpt.signals import early
from gpt2ckpt import console
early.handle_signals_early()
if sys.argv[1] == "training":
    console.install()
pathlib.Path(sys.argv[2]).touch()
while True:
    print("x" * 1000, flush=True)
"""


@pytest.mark.parametrize("phase", ["start", "training"])
@pytest.mark.parametrize("errors", ["apart", "with the rest"])
def test_signal_ends_a_process_with_a_blocked_console(
    tmp_path: Path, phase: str, errors: str
) -> None:
    """The main thread or the writing thread is blocked in a write, because the pipe is full."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x")
    os.set_blocking(write, True)
    log, ready = tmp_path / "errors.txt", tmp_path / "ready"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command(STUCK, phase, ready),
            **{"stdout": write, "stderr": file if errors == "apart" else write},
        )
    while not ready.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    if errors == "apart":
        assert log.read_text() == "interrupted: there was nothing to save\n"
    os.close(read)
    os.close(write)


def test_terminal_stopped_by_ctrl_s_does_not_block_the_process() -> None:
    main, side = pty.openpty()
    termios.tcflow(side, termios.TCOOFF)
    try:
        process = subprocess.Popen(command(MUCH, 3000), stdout=side, stderr=side)
        assert process.wait(timeout=120) == 7
    finally:
        os.close(side)
        os.close(main)


def test_closed_pipe_does_not_end_the_process() -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(command(MUCH, 100), stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 7
    assert errors.decode().splitlines() == [f"error {number}" for number in range(100)]


def test_worker_wait_gives_up_on_a_stuck_action_and_recovers() -> None:
    read, write = os.pipe()
    worker = Worker("test", limit=2)
    assert worker.submit(lambda: os.read(read, 1))
    assert not worker.wait(60, silence=0.05)
    while worker.submit(lambda: None):  # until it is full
        pass
    os.write(write, b"x")
    assert worker.wait(60, silence=30)
    assert worker.silence == 0.0
    assert worker.submit(lambda: None)
    os.close(read)
    os.close(write)


def test_idle_time_of_a_worker_is_not_silence() -> None:
    """Otherwise an action after a pause would seem to hang until the thread starts it."""
    worker, silences = Worker("test", limit=2), []
    for _ in range(5):
        assert worker.wait(60)
        time.sleep(1.0)
        worker.submit(lambda: None)
        silences.append(worker.silence)
    assert min(silences) < 0.9


def test_importing_a_command_does_not_replace_the_streams() -> None:
    script = "import sys, gpt2ckpt.train; print(sys.stdout is sys.__stdout__)"
    done = subprocess.run(command(script), capture_output=True, text=True, cwd=Path.cwd())
    assert done.stdout == "True\n"


def test_printable_escapes_control_characters() -> None:
    text = "a\tb\n\r\x1b[31mred\x00 \ud800 \u200b \xe9"
    assert printable(text) == "a\tb\n\\r\\x1b[31mred\\x00 \\ud800 \\u200b \xe9"
