"""Disks that fail, hang or become read-only during a run: real errors of system calls."""

import errno
import json
import logging
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import preload
import pytest
from checkpoint_helpers import NOON, names_in, put, request, small_state, step_of
from failing_storage import CALLS, KEEP
from real_disks import formatted

from gpt2ckpt.checkpoint import format
from gpt2ckpt.checkpoint.manager import CheckpointManager
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.newest_valid import find_valid
from gpt2ckpt.checkpoint.save_report import advice_for
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.files import durable

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What failing_storage.py told, by scene. Its last disk hangs for an hour: it does not."""
    folder = tmp_path_factory.mktemp("failing_storage")
    faults = preload.build(folder)
    paths = os.pathsep.join([str(HERE), *sys.path])
    command = [sys.executable, str(HERE / "failing_storage.py")]
    done = subprocess.run(
        [*command, str(folder), str(faults.library), str(faults.list)],
        **{"env": {**faults.environment, "PYTHONPATH": paths}, "timeout": 300},
        **{"capture_output": True, "text": True},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return {scene["scene"]: scene for scene in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("call", CALLS)
def test_an_error_of_the_device_fails_one_save(
    scenes: dict[str, dict[str, Any]], call: str
) -> None:
    scene = scenes[call]
    assert not scene["saved"]
    assert scene["valid"] and scene["again"]
    [warning] = [line for line in scene["heard"] if "SAVE FAILED" in line]
    assert "Input/output error" in warning and "dmesg" in warning
    if call in ("write", "fsync", "read", "rename", "open"):  # before the state has a name
        assert scene["kept"]
        assert scene["left"] == [], "a file that failed was left, or tried again"
    assert all(name.startswith("rolling_step") for name in scene["left"])


def test_without_links_and_folder_sync_names_are_copies_and_a_warning_is_logged(
    scenes: dict[str, dict[str, Any]],
) -> None:
    assert scenes["bare"]["saves"] == [True, True]
    assert scenes["bare"]["shared"] == 0
    assert any("cannot sync a folder" in line for line in scenes["bare"]["heard"])


def test_hanging_write_is_reported_and_training_continues(
    scenes: dict[str, dict[str, Any]],
) -> None:
    scene = scenes["hang"]
    assert scene["went_on"] < 3, "the training waited for the write that hangs for 4 s"
    assert any("the save of step 2 hangs" in line for line in scene["heard"])
    assert scene["skipped"] and scene["later"]
    [skipped] = [line for line in scene["heard"] if "SAVE FAILED at step 3" in line]
    assert "a save hangs" in skipped


def test_disk_that_hangs_forever_does_not_prevent_exit(
    scenes: dict[str, dict[str, Any]],
) -> None:
    scene = scenes["exit"]
    assert not scene["saved"]
    assert scene["failed"] == 6
    assert scene["newest"] == 4
    assert any("SAVE FAILED at step 6" in line for line in scene["heard"])


# ---------------------------------------------------------------- in this process


@pytest.mark.parametrize("every", [durable.SYNC_EVERY, 1], ids=["at its end", "on the way"])
def test_a_file_whose_sync_failed_is_never_synced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """The kernel reports a lost write once; a second fsync would succeed."""
    real, synced = os.fsync, list[int]()

    def fails_once(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        if len(synced) == 1:
            raise OSError(5, "Input/output error")
        real(descriptor)

    manager = CheckpointManager(tmp_path, KEEP, None)
    manager.save(small_state(1), request(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails_once)
        patch.setattr(durable, "SYNC_EVERY", every)
        assert manager.save(small_state(2), request(2)) is None
        assert len(synced) == 1
        assert manager.save(small_state(3), request(3)) is not None
    assert names_in(tmp_path) == {path.name for path in Store(tmp_path).files()}


def test_long_file_is_synced_while_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a slow disk is told from one that hangs, and no fsync takes minutes."""
    real, syncs, seen = os.fsync, list[int](), list[int]()
    monkeypatch.setattr(durable, "CHUNK", 10)
    monkeypatch.setattr(durable, "SYNC_EVERY", 40)
    monkeypatch.setattr(os, "fsync", lambda fd: (syncs.append(fd), real(fd)))
    durable.publish(tmp_path / "long", [bytes(95), bytes(30)], lambda path: None, seen.append)
    assert (tmp_path / "long").stat().st_size == sum(seen) == 125
    assert len(syncs) == 3 + 1 + 1  # on the way, at the end, the folder


@pytest.mark.parametrize("how", ["ro", "abort"])
def test_saves_on_read_only_disk_fail_until_it_is_writable(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`abort` is what ext4 does by itself on an error of its journal."""
    for disk in formatted("ext4", tmp_path / "disk"):
        folder = disk / "checkpoints"
        manager = CheckpointManager(folder, KEEP, None)
        assert manager.save(small_state(1), request(1)) is not None
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        turned = subprocess.run(
            ["mount", "-o", f"remount,{how}", str(disk)], capture_output=True, text=True
        )
        if turned.returncode and how == "abort":
            pytest.skip(f"this ext4 cannot be aborted: {turned.stderr.strip()}")
        assert turned.returncode == 0, turned.stderr
        assert manager.save(small_state(2), request(2)) is None
        warning = caplog.records[-1].message
        assert "Read-only file system" in warning and "mount it writable" in warning
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert find_valid(folder, Role.LATEST).state.step == 1
        if how == "ro":
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            assert manager.save(small_state(3), request(3)) is not None
        manager.close()


def test_removed_folder_is_not_created_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    manager = CheckpointManager(folder, KEEP, None)
    folder.rmdir()
    assert manager.save(small_state(1), request(1)) is None
    assert f"mkdir -p {folder}" in caplog.records[-1].message
    assert not folder.exists()
    folder.mkdir()
    assert manager.save(small_state(2), request(2)) is not None
    manager.close()


def test_order_does_not_depend_on_clock(tmp_path: Path) -> None:
    for step, hours in ((1, 0), (2, -5), (3, -9), (4, 2)):
        state = {**small_state(step), "saved_at": str(NOON + timedelta(hours=hours))}
        moment = request(step, emergency=True)
        moved = type(moment)(step, NOON + timedelta(hours=hours), emergency=True)
        assert CheckpointManager(tmp_path, KEEP, None).save(state, moved) is not None
        os.utime(tmp_path / "latest.pt", (4e9 - step, 4e9 - step))
    put(tmp_path, 5, keep=2, emergency=True)
    pool = [path for path in Store(tmp_path).files() if path.name.startswith("emergency")]
    assert [step_of(path) for path in pool] == [4, 5], "the oldest steps go, not the oldest times"
    assert find_valid(tmp_path, Role.EMERGENCY).state.step == 5
    chosen = next(path for path in pool if step_of(path) == 4)
    first = Store(tmp_path).roll_back_to(chosen, 4, NOON)
    put(tmp_path, 6, emergency=True)
    second = Store(tmp_path).roll_back_to(chosen, 4, NOON)  # the clock stands where it stood
    assert first and second and first != second
    assert logging.getLogger("gpt2ckpt").level == logging.NOTSET


def test_newest_save_is_found_without_latest_whatever_the_clock(
    tmp_path: Path,
) -> None:
    """Killed before they were latest.pt, while the clock went back by hours."""
    before = put(tmp_path, 4).read_bytes()
    for step, hours in ((5, -5), (6, -9), (7, -12)):
        state = {**small_state(step), "saved_at": str(NOON - timedelta(hours=-hours))}
        Store(tmp_path).put(format.encode(state), request(step), KEEP)
        os.utime(tmp_path / f"rolling_step_{step:06d}.pt", (4e9 - step, 4e9 - step))
    (tmp_path / "latest.pt").unlink()
    (tmp_path / "latest.pt").write_bytes(before)
    (tmp_path / "latest_backup.pt").unlink()
    (tmp_path / "rolling_last_backup.pt").unlink()
    assert find_valid(tmp_path, Role.LATEST).state.step == 7


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EIO, "dmesg"),
        (errno.EROFS, "mount it writable"),
        (errno.EPERM, "lsattr -d"),
        (errno.EDQUOT, "checkpoints prune"),
    ],
)
def test_advice_fits_the_error(tmp_path: Path, number: int, advice: str) -> None:
    assert advice in advice_for(OSError(number, os.strerror(number)), tmp_path)
