"""A save that fails never ends training and never destroys an older file."""

import errno
import logging
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import (
    flip_random_byte,
    largest_file,
    names_in,
    put,
    request,
    small_state,
    step_of,
    tensors_state,
)

from gpt2ckpt.checkpoint.event_sink import EventName, NoEvents
from gpt2ckpt.checkpoint.manager import CheckpointManager, ManagedRun, SavingOptions
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.newest_valid import find_valid
from gpt2ckpt.checkpoint.retention import Retention
from gpt2ckpt.checkpoint.store import Store

KEEP = Retention(2, 2)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_save_reports_its_file_and_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "run" / "checkpoints"
    saved = CheckpointManager(folder, KEEP, None).save(small_state(250), request(250))
    assert saved is not None
    assert saved.path == folder / "rolling_step_000250.pt"
    assert saved.size == saved.path.stat().st_size
    assert step_of(saved.path) == 250
    assert "saved rolling_step_000250.pt (step 250" in caplog.text


class RecordedEvents(NoEvents):
    """Keeps the calls in their order, each with the file that the manager reports as newest."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, Path | None]] = []
        self.manager: CheckpointManager | None = None

    def write(self, event: EventName, step: int | None, **fields: Any) -> None:
        newest = self.manager.newest if self.manager else None
        self.calls.append((event, {"step": step, **fields}, newest))

    def sync(self) -> None:
        self.calls.append(("sync", None, self.manager.newest if self.manager else None))


@pytest.mark.parametrize("in_background", [False, True])
def test_save_is_recorded_durably_before_it_is_reported(
    tmp_path: Path, in_background: bool
) -> None:
    events = RecordedEvents()
    options, run = SavingOptions(in_background=in_background), ManagedRun(events=events)
    manager = CheckpointManager(tmp_path, KEEP, None, options=options, run=run)
    events.manager = manager
    manager.save(small_state(250), request(250, regular=True, best=True))
    assert manager.wait()
    manager.close()
    before, (name, saved, newest), after = events.calls
    assert before == ("sync", None, None), "what led to the state is durable first"
    assert (name, newest, after) == ("checkpoint_saved", None, ("sync", None, None))
    assert saved["file"] == "rolling_step_000250.pt" and saved["step"] == 250
    assert saved["roles"] == ["latest", "rolling", "best"]
    assert saved["bytes"] == (tmp_path / saved["file"]).stat().st_size
    assert 0 < saved["stall_seconds"] <= saved["seconds"]


def test_damaged_file_is_recorded_durably_before_its_repair(tmp_path: Path) -> None:
    CheckpointManager(tmp_path, KEEP, None).save(small_state(100), request(100))
    flip_random_byte(tmp_path / "latest.pt", seed=1)
    seen: list[bytes] = []

    class Events(RecordedEvents):
        def sync(self) -> None:
            super().sync()
            seen.append((tmp_path / "latest.pt").read_bytes())

    events, damaged = Events(), (tmp_path / "latest.pt").read_bytes()
    manager = CheckpointManager(tmp_path, KEEP, None, run=ManagedRun(events=events))
    manager.save(small_state(200), request(200))
    manager.close()
    order = [name for name, *_ in events.calls]
    place = order.index("checkpoint_corrupt")
    assert order[place : place + 3] == ["checkpoint_corrupt", "sync", "checkpoint_repaired"]
    assert seen[order[:place].count("sync")] == damaged


def fail_with_eio(*arguments: Any, **options: Any) -> None:
    raise OSError(errno.EIO, "the device failed")


@pytest.mark.parametrize("call", ["fsync", "write", "replace", "open"])
def test_a_failed_save_warns_once_and_keeps_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    manager = CheckpointManager(tmp_path, KEEP, None)
    manager.save(small_state(100), request(100))
    before = snapshot(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail_with_eio)
        assert manager.save(small_state(200), request(200)) is None
    assert snapshot(tmp_path) == before
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "SAVE FAILED at step 200" in warnings[0]
    assert "the device failed" in warnings[0]
    assert str(tmp_path) in warnings[0]
    assert manager.save(small_state(300), request(300)) is not None
    assert step_of(tmp_path / "latest.pt") == 300


def test_folder_of_another_run_is_not_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that had been moved saved into the one that took its name, and deleted its files."""
    others: list[str] = []

    def check() -> None:
        if others:
            raise OSError(errno.EBUSY, others[0])

    manager = CheckpointManager(tmp_path, Retention(1, 1), None, run=ManagedRun(check_owner=check))
    manager.save(small_state(100), request(100))
    manager.reserve(1 << 20)
    found = manager.last_regular()
    manager.save(small_state(200), request(200))
    before = snapshot(tmp_path)
    others.append("it is being trained by another process")
    assert manager.save(small_state(300), request(300)) is None
    assert "SAVE FAILED at step 300: it is being trained by another process" in caplog.text
    assert found is not None
    with pytest.raises(OSError, match="another process"):
        manager.roll_back_to(found)
    manager.close()
    assert snapshot(tmp_path) == before


def test_a_save_that_reads_back_wrong_is_a_failed_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manager = CheckpointManager(tmp_path, KEEP, None)
    manager.save(small_state(100), request(100))
    before = snapshot(tmp_path)
    real_fsync = os.fsync

    def lossy(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_file():
            flip_random_byte(path, seed=4)
        real_fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lossy)
        assert manager.save(small_state(200), request(200)) is None
    assert snapshot(tmp_path) == before
    assert "SAVE FAILED at step 200" in caplog.text


def test_a_folder_that_vanished_is_a_failed_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = CheckpointManager(tmp_path / "checkpoints", KEEP, None)
    (tmp_path / "checkpoints").rmdir()
    assert manager.save(small_state(100), request(100)) is None
    assert "SAVE FAILED at step 100" in caplog.text


def test_save_beyond_file_size_limit_keeps_older_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = CheckpointManager(tmp_path, KEEP, None)
    manager.save(tensors_state(100, kilobytes=10), request(100))
    before = snapshot(tmp_path)
    with largest_file(100_000):
        assert manager.save(tensors_state(200, kilobytes=400), request(200)) is None
    assert snapshot(tmp_path) == before
    assert "File too large" in caplog.text


def test_a_disk_that_fills_up_keeps_the_older_saves(
    tiny_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = CheckpointManager(tiny_disk, Retention(9, 9), None)
    saved = [manager.save(tensors_state(step, 150), request(step)) for step in range(1, 9)]
    assert [bool(save) for save in saved] == [True] * 4 + [False] * 4
    assert "SAVE FAILED at step 5: it needs" in caplog.text
    assert find_valid(tiny_disk, Role.LATEST).state.step == 4
    assert all(step_of(path) for path in Store(tiny_disk).files())
    (tiny_disk / "rolling_step_000001.pt").unlink()
    (tiny_disk / "rolling_step_000002.pt").unlink()
    assert manager.save(tensors_state(9, 150), request(9)) is not None
    assert find_valid(tiny_disk, Role.LATEST).state.step == 9


def test_free_space_is_compared_with_all_copies(
    tiny_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A regular save that is also a best one writes three files: with room for two, none."""
    manager = CheckpointManager(tiny_disk, KEEP, None)
    state = tensors_state(1, kilobytes=400)
    assert manager.save(state, request(1, regular=True, best=True)) is None
    assert names_in(tiny_disk) == set()
    assert "it needs 1.2 MB and 1.0 MB are free" in caplog.text
    assert manager.save(state, request(1)) is not None


def test_file_resumed_from_is_never_deleted(tmp_path: Path) -> None:
    put(tmp_path, 100)
    manager = CheckpointManager(tmp_path, KEEP, tmp_path / "rolling_step_000100.pt")
    for step in range(101, 106):
        manager.save(small_state(step), request(step))
    pool = {name for name in names_in(tmp_path) if name.startswith("rolling_step")}
    assert pool == {f"rolling_step_{step:06d}.pt" for step in (100, 104, 105)}


def test_file_in_another_folder_does_not_pin_same_name(tmp_path: Path) -> None:
    archive = tmp_path / "abandoned_20251106_120000"
    archive.mkdir()
    chosen = put(archive, 100)
    manager = CheckpointManager(tmp_path, KEEP, chosen)
    for step in range(100, 104):
        manager.save(small_state(step), request(step))
    assert not (tmp_path / chosen.name).exists()
    assert chosen.exists()


def test_a_start_cleans_up_after_dead_processes(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    left = tmp_path / f".latest.pt.{socket.gethostname()}-{process.pid}-0123abcd.tmp"
    alive = tmp_path / f".latest.pt.{socket.gethostname()}-{os.getppid()}-0123abcd.tmp"
    for path in (left, alive, tmp_path / "notes.tmp"):
        path.touch()
    CheckpointManager(tmp_path, KEEP, None)
    assert names_in(tmp_path) == {alive.name, "notes.tmp"}


def test_without_memory_for_a_copy_the_training_waits_and_the_state_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = CheckpointManager(tmp_path, KEEP, None, options=SavingOptions(in_background=True))
    assert (
        manager.save(small_state(1), request(1, emergency=True)) is not None
    )  # starts the threads
    state = {**small_state(2), "big": torch.zeros(128 << 20, dtype=torch.uint8)}
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + (32 << 20), before[1]))
    try:
        saved = manager.save(state, request(2))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert saved is not None, caplog.text
    assert "no memory for a copy of the state, training waits" in caplog.text
    manager.close()
    assert step_of(tmp_path / "latest.pt") == 2
