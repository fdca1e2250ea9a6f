"""A logger that hangs: nothing waits for it, and what it misses is counted."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2ckpt.loggers import background
from gpt2ckpt.loggers.background import BackgroundLogger
from gpt2ckpt.loggers.base import MetricRecord


class Stuck:
    """A logger that hangs in an event until `goes_on` is set."""

    def __init__(self) -> None:
        self.hangs, self.goes_on = threading.Event(), threading.Event()
        self.steps: list[int] = []

    def log(self, event: MetricRecord) -> None:
        self.hangs.set()
        self.goes_on.wait(600)
        self.steps.append(int(event["step"]))

    def text(self, step: int, text: str) -> None:
        self.steps.append(step)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stuck]:
    for name, value in {"LIMIT": 3, "SAVE_WAITS": 0.1, "SILENCE": 0.3}.items():
        monkeypatch.setattr(background, name, value)
    logger = Stuck()
    yield logger
    logger.goes_on.set()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]


def given(stuck: Stuck, events: int) -> BackgroundLogger:
    logger = BackgroundLogger("W&B", lambda: stuck)
    logger.log({"step": 1})
    assert stuck.hangs.wait(60)
    for step in range(2, events + 1):
        logger.log({"step": step})
    return logger


def test_a_logger_that_hangs_is_left_behind_with_two_warnings(
    stuck: Stuck, caplog: pytest.LogCaptureFixture
) -> None:
    logger = given(stuck, events=9)
    logger.flush()
    logger.sync()
    logger.close(600)
    first, last = warnings(caplog)
    assert first.startswith("W&B has taken nothing for ")
    assert last == "W&B hangs and is left behind: 9 events are missing there, metrics.jsonl has all"
    stuck.goes_on.set()
    time.sleep(0.1)
    assert stuck.steps == [1], "what comes to life after the end does nothing more"


def test_a_logger_that_was_slow_has_the_events_in_order_that_it_had_space_for(
    stuck: Stuck, caplog: pytest.LogCaptureFixture
) -> None:
    logger = given(stuck, events=9)
    stuck.goes_on.set()
    logger.close(600)
    assert stuck.steps == [1, 2, 3, 4]
    assert warnings(caplog)[1:] == [
        "W&B did not keep up: 5 events are missing there, metrics.jsonl has all"
    ]


def test_a_save_waits_until_earlier_events_are_taken(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "SAVE_WAITS", 600)
    logger = given(stuck, events=3)
    threading.Timer(0.1, stuck.goes_on.set).start()
    logger.sync()
    assert stuck.steps == [1, 2, 3]
    logger.close(600)


def test_progress_of_a_process_that_works_for_a_logger_is_waited_for(stuck: Stuck) -> None:
    beats = iter(range(1_000_000))
    logger = BackgroundLogger("W&B", lambda: stuck, lambda: next(beats))
    logger.log({"step": 1})
    threading.Timer(1.0, stuck.goes_on.set).start()  # three times as long as silence is borne
    logger.close(600)
    assert stuck.steps == [1]


def test_progress_has_an_end(stuck: Stuck, caplog: pytest.LogCaptureFixture) -> None:
    beats = iter(range(1_000_000))
    logger = BackgroundLogger("W&B", lambda: stuck, lambda: next(beats))
    logger.log({"step": 1})
    logger.close(0.5)
    assert "left behind: 1 events are missing" in caplog.text


HANGING = """
import atexit, sys, threading, time
from gpt2ckpt.exits import reported_errors
from gpt2ckpt.loggers import background
from gpt2ckpt.loggers.fanout import Loggers
from gpt2ckpt.loggers.base import NullLogger
background.SILENCE = 0.1
def open_logger():
    atexit.register(time.sleep, 600)  # as W&B's hook, which waits for a service that hangs
    time.sleep(600)
with reported_errors():
    loggers = Loggers(NullLogger())
    loggers.add("W&B", open_logger)
    loggers.close(600)
    print("the last line")
    sys.exit(7)
"""


def test_neither_its_thread_nor_its_exit_hooks_keep_the_process(tmp_path: Path) -> None:
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", HANGING], **options)
    assert (done.returncode, done.stdout) == (7, "the last line\n")
    assert "W&B hangs and is left behind: 0 events are missing there" in done.stderr
