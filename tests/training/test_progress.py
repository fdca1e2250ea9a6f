"""The progress bar is drawn only on a terminal, and does not break log lines."""

import os
import pty
import subprocess
import sys
import termios

import pytest

TRAINING = """
import logging, sys
from gpt2ckpt.training.progress import open_progress
logging.basicConfig(stream=sys.stdout, level="INFO", format="%(message)s")
bar = open_progress(10, done_steps=4)
for step in range(5, 11):
    bar.update(step)
    logging.info("line %d", step)
bar.close()
logging.info("end")
"""
LINES = [*(f"line {step}" for step in range(5, 11)), "end"]


LONG_STEP = """
import logging, sys, time
from gpt2ckpt.training import progress
logging.basicConfig(stream=sys.stdout, level="INFO", format="%(message)s")
progress.LONG = progress.DRAW_EVERY = 0.01
bar = progress.open_progress(10, done_steps=4)
bar.note("compiling")
time.sleep(0.2)
bar.part(1, 1)
bar.part(3, 64)
time.sleep(0.2)
if len(sys.argv) > 1:
    progress.tqdm.refresh = lambda *_, **__: time.sleep(600) if sys.argv[1] == "hangs" else 1 / 0
bar.update(5)
if len(sys.argv) > 1:
    logging.info("a line")
    for step in range(6, 11):
        time.sleep(0.02)
        bar.update(step)
bar.close()
"""


def test_bar_shows_compilation_and_micro_batches_of_long_step():
    _, drawn = on_a_terminal(capture_stdout=True, script=LONG_STEP)
    assert drawn.index("compiling") < drawn.index("micro-batch 3/64")
    assert "micro-batch 1/1" not in drawn


@pytest.mark.parametrize("way", ["raises", "hangs"])
def test_training_continues_when_bar_cannot_be_drawn(way):
    """A log line waits for the drawing thread, but is written once that thread hangs."""
    _, drawn = on_a_terminal(capture_stdout=False, script=LONG_STEP, arguments=[way])
    assert "micro-batch 3/64" in drawn and "Error" not in drawn
    assert drawn.count("a line") == 1


def test_pipe_gets_no_bar():
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True)
    assert (done.stdout.splitlines(), done.stderr) == (LINES, "")


def on_a_terminal(capture_stdout, script=TRAINING, arguments=()):
    """Run a script on a terminal of 80 columns; return its piped stdout and the drawn output."""
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 80))
    stdout = subprocess.PIPE if capture_stdout else side
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, stdout=stdout, stderr=side, text=True, timeout=60)
    drawn = os.read(main, 100_000).decode()
    os.close(side)
    os.close(main)
    return done.stdout, drawn


def test_bar_on_stderr_leaves_piped_stdout_plain():
    piped, drawn = on_a_terminal(capture_stdout=True)
    assert piped.splitlines() == LINES
    assert "4/10" in drawn  # the bar starts at the step of the resumed run


def test_log_lines_appear_unbroken_above_the_bar():
    _, drawn = on_a_terminal(capture_stdout=False)
    assert "4/10" in drawn
    # A terminal shows the part of a line after the last carriage return.
    shown = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in drawn.split("\n")]
    assert shown[:-1] == LINES
    assert shown[-1].strip() == ""  # and no part of the bar
