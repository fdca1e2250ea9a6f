"""A hanging logger blocks nothing, and its dropped events are counted."""

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
    """A logger that hangs in its first event until `released` is set."""

    def __init__(self) -> None:
        self.hangs, self.released = threading.Event(), threading.Event()
        self.steps: list[int] = []

    def log(self, event: MetricRecord) -> None:
        self.hangs.set()
        self.released.wait(600)
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
    logger.released.set()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]


def given(stuck: Stuck, events: int) -> BackgroundLogger:
    logger = BackgroundLogger("W&B", lambda: stuck)
    logger.log({"step": 1})
    assert stuck.hangs.wait(60)
    for step in range(2, events + 1):
        logger.log({"step": step})
    return logger


def test_hanging_logger_is_abandoned_with_two_warnings(
    stuck: Stuck, caplog: pytest.LogCaptureFixture
) -> None:
    logger = given(stuck, events=9)
    logger.flush()
    logger.sync()
    logger.close(600)
    first, last = warnings(caplog)
    assert first.startswith("W&B has not responded for ")
    assert (
        last
        == "W&B does not respond and was abandoned, 9 events dropped; metrics.jsonl has all events"
    )
    stuck.released.set()
    time.sleep(0.1)
    assert stuck.steps == [1], "what comes to life after the end does nothing more"


def test_slow_logger_gets_the_queued_events_in_order(
    stuck: Stuck, caplog: pytest.LogCaptureFixture
) -> None:
    logger = given(stuck, events=9)
    stuck.released.set()
    logger.close(600)
    assert stuck.steps == [1, 2, 3, 4]
    assert warnings(caplog)[1:] == [
        "W&B was too slow, 5 events dropped; metrics.jsonl has all events"
    ]


def test_sync_waits_until_earlier_events_are_processed(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "SAVE_WAITS", 600)
    logger = given(stuck, events=3)
    threading.Timer(0.1, stuck.released.set).start()
    logger.sync()
    assert stuck.steps == [1, 2, 3]
    logger.close(600)


def test_close_waits_while_a_helper_process_makes_progress(stuck: Stuck) -> None:
    beats = iter(range(1_000_000))
    logger = BackgroundLogger("W&B", lambda: stuck, lambda: next(beats))
    logger.log({"step": 1})
    threading.Timer(1.0, stuck.released.set).start()  # three times the limit
    logger.close(600)
    assert stuck.steps == [1]


def test_close_stops_waiting_at_its_deadline(
    stuck: Stuck, caplog: pytest.LogCaptureFixture
) -> None:
    beats = iter(range(1_000_000))
    logger = BackgroundLogger("W&B", lambda: stuck, lambda: next(beats))
    logger.log({"step": 1})
    logger.close(0.5)
    assert "was abandoned, 1 event dropped" in caplog.text


HANGING = """
import atexit, sys, threading, time
from gpt2ckpt.exits import reported_errors
from gpt2ckpt.loggers import background
from gpt2ckpt.loggers.fanout import Loggers
background.SILENCE = 0.1
def open_logger():
    atexit.register(time.sleep, 600)  # as W&B's hook, which waits for a service that hangs
    time.sleep(600)
with reported_errors():
    loggers = Loggers(None)
    loggers.add("W&B", open_logger)
    loggers.close(600)
    print("the last line")
    sys.exit(7)
"""


def test_hanging_logger_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", HANGING], **options)
    assert (done.returncode, done.stdout) == (7, "the last line\n")
    assert "W&B does not respond and was abandoned, 0 events dropped" in done.stderr
