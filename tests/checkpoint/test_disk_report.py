"""Measuring what a run takes: the watching of a disk that never gets in the way."""

import logging
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from gpt2ckpt.checkpoint import disk_report
from gpt2ckpt.checkpoint.disk_report import (
    BOUNDLESS,
    DiskReport,
    DiskUsage,
    disk_bytes,
    forecast,
    measure_usage,
    paths_below,
)


def test_folders_that_come_and_go_do_not_disturb_a_measurement(tmp_path: Path) -> None:
    """Somebody unpacks and deletes a tree in the run directory."""
    (tmp_path / "kept").write_bytes(bytes(1 << 16))
    notes, has_ended = tmp_path / "notes", threading.Event()

    def churn() -> None:
        while not has_ended.is_set():
            for number in range(30):
                (notes / str(number) / "a" / "b").mkdir(parents=True, exist_ok=True)
            shutil.rmtree(notes)

    worker = threading.Thread(target=churn)
    worker.start()
    try:
        for _ in range(200):
            assert measure_usage(tmp_path).used >= 1 << 16
    finally:
        has_ended.set()
        worker.join()


def test_links_are_not_followed_and_names_of_one_file_count_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "inner").mkdir(parents=True)
    (run / "file").write_bytes(bytes(1 << 20))
    os.link(run / "file", run / "inner" / "again")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "large").write_bytes(bytes(8 << 20))
    (run / "link").symlink_to(tmp_path / "elsewhere")
    assert {path.name for path in paths_below(run)} == {"file", "inner", "again", "link"}
    assert 1 << 20 <= disk_bytes(paths_below(run)) < 2 << 20


def test_a_count_that_takes_too_long_is_a_lower_bound(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / str(number)).write_bytes(bytes(1 << 16))
    found = measure_usage(tmp_path, seconds=0)
    assert not found.is_counted and found.used <= 10 << 16
    sentence, _ = forecast(found, 1 << 20, 1.0)
    assert sentence.startswith("the run takes at least ")


def test_an_outlook_warns_where_few_saves_fit() -> None:
    assert forecast(DiskUsage(5_000_000, 9_000_000), 1_000_000, 360.0) == (
        "the run takes 5.0 MB, 9.0 MB free: 9 more saves fit, 54m 00s at this rate",
        True,
    )
    assert not forecast(DiskUsage(0, 10_000_000), 1_000_000, 1.0)[1]
    sentence, is_scarce = forecast(DiskUsage(5_000_000, BOUNDLESS), 1_000_000, 1.0)
    assert "free space not known" in sentence and not is_scarce


def test_a_disk_that_holds_all_that_is_kept_lasts() -> None:
    """Once the pools are full, each new file replaces an older one, and nothing runs out."""
    few = DiskUsage(5_000_000, 9_000_000)
    sentence, is_scarce = forecast(few, 1_000_000, 360.0, coming=9_000_000)
    assert sentence.endswith(
        "9 more saves fit, and the disk lasts, since new files replace old ones"
    )
    assert not is_scarce
    assert forecast(few, 1_000_000, 360.0, coming=9_000_001)[1]


def test_few_saves_are_a_warning_once_until_more_fit_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    report = DiskReport(folder)
    with caplog.at_level(logging.INFO):
        for free in (9, 8, 7, 20, 9):
            monkeypatch.setattr(disk_report, "measure_free", lambda _, free=free: free)
            report.start(1, 1.0)
            report.wait(30)
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "INFO", "INFO", "INFO", "WARNING"]
    assert f"prune {folder} --keep-rolling 2" in caplog.records[0].getMessage()


def test_what_the_checkpoints_have_taken_does_not_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk_report, "measure_free", lambda _: 1 << 16)
    for number in range(3):
        (tmp_path / f"{number}.pt").write_bytes(bytes(1 << 16))
    with caplog.at_level(logging.INFO):
        for most in (4 << 16, 5 << 16):
            report = DiskReport(tmp_path)
            report.start(1 << 16, 1.0, most)
            report.wait(30)
    assert ["the disk lasts" in record.getMessage() for record in caplog.records] == [True, False]


def test_a_report_that_hangs_holds_nobody_and_gets_no_company(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers, calls = threading.Event(), []

    def hang(folder: Path) -> int:
        calls.append(folder)
        answers.wait()
        return 1

    monkeypatch.setattr(disk_report, "measure_free", hang)
    report, begun = DiskReport(tmp_path), time.monotonic()
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            report.start(1, 1.0)
        report.wait(0.05)
        assert len(calls) <= 1 and time.monotonic() - begun < 30
        answers.set()
        report.wait(30)
    assert len(calls) == 1 and caplog.text.count("disk: the run takes") == 1
