"""train.log and metrics.jsonl on a full or hanging disk, and after their deletion."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import preload
import pytest
from real_disks import mounted

from gpt2ckpt.loggers.append_file import AppendFile
from gpt2ckpt.loggers.fanout import Loggers
from gpt2ckpt.loggers.log_file import LogFile
from gpt2ckpt.loggers.metrics_file import MetricsFile, read


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return the mount point of a tmpfs of 64 KiB."""
    yield from mounted(["-t", "tmpfs", "-o", "size=64k", "tmpfs"], tmp_path / "disk")


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("test", logging.INFO, "", 0, text, None, None)


def fill(folder: Path) -> Path:
    path = folder / "other.bin"
    with path.open("wb", buffering=0) as file:
        file.write(bytes(1 << 20))
    return path


def test_log_lines_are_kept_until_the_disk_has_space(
    disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = LogFile(str(disk / "train.log"))
    handler.emit(record("first"))
    others = fill(disk)
    lines = [f"line {number} {'.' * 90}" for number in range(100)]
    for line in lines:
        handler.emit(record(line))
    printed = capsys.readouterr().err
    assert printed.count("cannot be written for now") == 1 and "No space left" in printed
    others.unlink()
    handler.emit(record("last"))
    handler.close()
    assert (disk / "train.log").read_text().splitlines() == ["first", *lines, "last"]
    assert capsys.readouterr().err == ""


def test_lines_lost_at_close_are_counted(
    disk: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    handler, metrics = LogFile(str(disk / "train.log")), MetricsFile(disk / "metrics.jsonl")
    loggers = Loggers(metrics)
    loggers.log({"step": 1, "train_loss": 1.0})
    fill(disk)
    for number in range(200):
        handler.emit(record(f"line {number} {'.' * 90}"))
        loggers.log({"step": number + 2, "train_loss": 1.0})
    handler.close()
    loggers.close(60)
    written = (disk / "train.log").read_text().splitlines()
    assert all(line.startswith("line ") and len(line) > 90 for line in written), "a torn line"
    assert f"{200 - len(written)} lines of {disk}/train.log" in capsys.readouterr().err
    kept = len(read(disk / "metrics.jsonl"))
    assert f"{201 - kept} lines of {disk}/metrics.jsonl could not be written" in caplog.text


HANGING = """
import logging, pathlib, sys, time
from gpt2ckpt.loggers import append_file
from gpt2ckpt.loggers.fanout import Loggers
from gpt2ckpt.loggers.log_file import LogFile
from gpt2ckpt.loggers.metrics_file import MetricsFile
append_file.PATIENCE = 0.2
folder, faults = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
logging.basicConfig(level="INFO", format="%(message)s", handlers=[LogFile(folder / "train.log")])
loggers = Loggers(MetricsFile(folder / "metrics.jsonl"))
for step in range(1, 9):
    if step == 3:
        names = ("metrics.jsonl", "train.log")
        hung = [f"write -{sys.argv[3]} {folder}/{name}\\n" for name in names]
        faults.write_text("".join(hung))
    if step == 6 and sys.argv[3] == "1":
        faults.write_text("")
        for name, line in (("metrics.jsonl", '"step": 5'), ("train.log", "line 5")):
            while line not in (folder / name).read_text():
                time.sleep(0.05)
    loggers.log({"step": step})
    logging.info("line %d", step)
    loggers.sync()
loggers.close(60)
"""


@pytest.mark.parametrize(("seconds", "steps"), [(1, range(1, 9)), (600, range(1, 3))])
def test_hanging_file_system_blocks_no_caller_and_lines_are_kept(
    tmp_path: Path, seconds: int, steps: range
) -> None:
    faults = preload.build(tmp_path)
    args = [str(tmp_path), str(faults.list), str(seconds)]
    done = subprocess.run(
        [sys.executable, "-c", HANGING, *args],
        **{"env": faults.environment, "capture_output": True, "text": True, "timeout": 120},
    )
    assert done.returncode == 0, done.stderr
    assert [event["step"] for event in read(tmp_path / "metrics.jsonl")] == list(steps)
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line for line in lines if line[:4] == "line"] == [f"line {step}" for step in steps]
    assert done.stderr.count("train.log cannot be written for now") == 1
    lost = done.stderr.count("are lost")
    if seconds == 1:
        assert lost == 0, done.stderr
        assert "metrics.jsonl cannot be written for now" in "".join(lines)
    else:
        assert lost == 1 and "lines of" in done.stderr


def test_deleted_metrics_file_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    loggers = Loggers(MetricsFile(path))
    path.unlink()
    for step in (1, 2):
        loggers.log({"step": step, "train_loss": 1.0})
        loggers.sync()
    printed = [entry.message for entry in caplog.records if "was deleted" in entry.message]
    assert len(printed) >= 1
    assert not path.exists()


def test_pending_lines_are_counted_and_a_torn_line_is_ended(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("torn")
    file = AppendFile(tmp_path / "log")
    assert file.pending_lines == 0
    file.append("a\nb\n")
    assert (tmp_path / "log").read_text() == "torn\na\nb\n"


def test_snapshot_by_hard_links_is_unchanged(tmp_path: Path) -> None:
    """One snapshot is taken before the file is opened, one while it is open."""
    path, first, second = (tmp_path / name for name in ("log", "first", "second"))
    path.write_text("before\n")
    os.link(path, first)
    file = AppendFile(path)
    file.append("then\n")
    os.link(path, second)
    file.append("now\n")
    file.sync()
    file.close()
    assert [entry.read_text() for entry in (first, second, path)] == [
        "before\n",
        "before\nthen\n",
        "before\nthen\nnow\n",
    ]


def test_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        AppendFile(tmp_path / "log")
    assert not (tmp_path / "elsewhere").exists()
