"""Reports of how long the disk space lasts never delay training."""

import logging
import threading
import time
from pathlib import Path

import pytest

from gpt2ckpt.checkpoint.disk_forecast import DiskForecast, forecast
from gpt2ckpt.files import disk_usage
from gpt2ckpt.files.disk_usage import UNKNOWN_FREE, DiskUsage


def test_forecast_calls_an_unfinished_count_a_lower_bound() -> None:
    sentence, _ = forecast(DiskUsage(5_000_000, 9_000_000, is_counted=False), 1 << 20, 1.0)
    assert sentence.startswith("the run takes at least ")


def test_forecast_warns_if_few_saves_fit() -> None:
    assert forecast(DiskUsage(5_000_000, 9_000_000), 1_000_000, 360.0) == (
        "the run takes 5.0 MB, 9.0 MB free: 9 more saves fit, 54m 00s at this rate",
        True,
    )
    assert not forecast(DiskUsage(0, 10_000_000), 1_000_000, 1.0)[1]
    sentence, is_scarce = forecast(DiskUsage(5_000_000, UNKNOWN_FREE), 1_000_000, 1.0)
    assert "free space not known" in sentence and not is_scarce


def test_forecast_says_the_disk_lasts_if_new_files_replace_old_ones() -> None:
    """Once the pools are full, each new file replaces an older one, and nothing runs out."""
    few = DiskUsage(5_000_000, 9_000_000)
    sentence, is_scarce = forecast(few, 1_000_000, 360.0, coming=9_000_000)
    assert sentence.endswith(
        "9 more saves fit, and the disk lasts, since new files replace old ones"
    )
    assert not is_scarce
    assert forecast(few, 1_000_000, 360.0, coming=9_000_001)[1]


def test_too_little_space_is_a_warning_once_until_more_saves_fit_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    report = DiskForecast(folder)
    with caplog.at_level(logging.INFO):
        for free in (9, 8, 7, 20, 9):
            monkeypatch.setattr(disk_usage, "measure_free", lambda _, free=free: free)
            report.start(1, 1, 1.0)
            report.wait(30)
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "INFO", "INFO", "INFO", "WARNING"]
    assert f"prune {folder} --keep-rolling 2" in caplog.records[0].getMessage()


def test_forecast_counts_existing_checkpoints_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk_usage, "measure_free", lambda _: 1 << 16)
    for number in range(3):
        (tmp_path / f"{number}.pt").write_bytes(bytes(1 << 16))
    with caplog.at_level(logging.INFO):
        for most in (4 << 16, 5 << 16):
            report = DiskForecast(tmp_path)
            report.start(1, 1 << 16, 1.0, most)
            report.wait(30)
    assert ["the disk lasts" in record.getMessage() for record in caplog.records] == [True, False]


def test_a_report_that_hangs_delays_no_caller_and_no_second_one_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers, calls = threading.Event(), []

    def hang(folder: Path) -> int:
        calls.append(folder)
        answers.wait()
        return 1

    monkeypatch.setattr(disk_usage, "measure_free", hang)
    report, begun = DiskForecast(tmp_path), time.monotonic()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            report.start(1, 1, 1.0)
        report.wait(0.05)
        assert len(calls) <= 1 and time.monotonic() - begun < 30
        answers.set()
        report.wait(30)
    assert len(calls) == 1 and caplog.text.count("disk: the run takes") == 1
