"""Disk usage is measured without following links, and never disturbs training."""

import os
import shutil
import threading
from pathlib import Path

from gpt2ckpt.files.disk_usage import disk_bytes, measure_usage, paths_below


def test_directories_that_appear_and_vanish_do_not_disturb_a_measurement(tmp_path: Path) -> None:
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


def test_symbolic_links_are_not_followed_and_hard_links_count_once(tmp_path: Path) -> None:
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
