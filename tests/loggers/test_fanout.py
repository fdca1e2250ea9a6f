import errno
import logging

import pytest

from gpt2ckpt.loggers.fanout import Loggers
from gpt2ckpt.loggers.metrics_file import MetricsFile, read
from gpt2ckpt.loggers.tensorboard import TensorBoardLogger

PATIENCE = 60


class Recorder:
    """Records its calls, and fails from call number `fails_at` on."""

    def __init__(self, fails_at=None, error=RuntimeError):
        self.calls = []
        self.error = error
        self.fails_at = fails_at

    def _take(self, *call):
        self.calls.append(call)
        if self.fails_at is not None and len(self.calls) > self.fails_at:
            raise self.error("no connection\nand a second line")

    def log(self, event):
        self._take("log", event["step"])

    def text(self, step, text):
        self._take("text", step, text)

    def flush(self):
        self._take("flush")

    def close(self):
        self._take("close")


class FullDisk(MetricsFile):
    full = False

    def log(self, event):
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().log(event)


@pytest.fixture
def metrics(tmp_path):
    return FullDisk(tmp_path / "metrics.jsonl")


def warnings(caplog):
    return [record.getMessage() for record in caplog.records]


def test_all_loggers_get_all_events_in_order(metrics, tmp_path):
    loggers, one, two = Loggers(metrics), Recorder(), Recorder()
    loggers.add("one", lambda: one)
    loggers.add("two", lambda: two)
    loggers.log({"step": 1})
    loggers.text(1, "The")
    loggers.flush()
    loggers.close(PATIENCE)
    loggers.close(PATIENCE)
    expected = [("log", 1), ("text", 1, "The"), ("flush",), ("close",)]
    assert one.calls == two.calls == expected
    assert read(tmp_path / "metrics.jsonl") == [{"step": 1}]


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_failing_logger_is_disabled_with_one_warning(metrics, tmp_path, caplog, error):
    loggers, bad, good = Loggers(metrics), Recorder(fails_at=1, error=error), Recorder()
    loggers.add("bad", lambda: bad)
    loggers.add("good", lambda: good)
    for step in (1, 2, 3):
        loggers.log({"step": step})
    loggers.close(PATIENCE)
    assert bad.calls == [("log", 1), ("log", 2)]
    assert [call for call in good.calls if call[0] == "log"] == [("log", 1), ("log", 2), ("log", 3)]
    assert len(read(tmp_path / "metrics.jsonl")) == 3
    assert warnings(caplog) == ["bad failed and is disabled from now on: no connection"]


def test_logger_that_cannot_be_opened_is_a_warning(metrics, tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    loggers = Loggers(metrics)
    loggers.add("TensorBoard", lambda: TensorBoardLogger(tmp_path / "tensorboard"))
    loggers.log({"step": 1})
    loggers.close(PATIENCE)
    (message,) = warnings(caplog)
    assert message.startswith("TensorBoard is disabled in this run: ") and "tensorboard" in message


def test_metrics_file_warns_once_per_failure_period_and_is_never_disabled(
    metrics, tmp_path, caplog
):
    loggers = Loggers(metrics)
    for step, full in enumerate([False, True, True, False, True, False]):
        metrics.full = full
        loggers.log({"step": step})
    loggers.close(PATIENCE)
    assert len(warnings(caplog)) == 2
    assert "No space left on device" in warnings(caplog)[0]
    assert [event["step"] for event in read(tmp_path / "metrics.jsonl")] == [0, 3, 5]


def test_failures_are_logged_at_warning_level(metrics, caplog):
    loggers = Loggers(metrics)
    loggers.add("bad", lambda: Recorder(fails_at=0))
    loggers.text(1, "x")
    loggers.close(PATIENCE)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
