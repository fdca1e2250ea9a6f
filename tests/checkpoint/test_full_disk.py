"""Full file systems: files are kept, warnings are logged, and an emergency save succeeds."""

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import preload
import pytest
from checkpoint_helpers import names_in, request, step_of, tensors_state
from real_disks import formatted, mounted

from gpt2ckpt.checkpoint.archive_folders import ABANDONED, archive_folders
from gpt2ckpt.checkpoint.emergency_reserve import RESERVATION, Reservation, with_margin
from gpt2ckpt.checkpoint.manager import CheckpointManager
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.newest_valid import Found, find_valid
from gpt2ckpt.checkpoint.retention import Retention
from gpt2ckpt.checkpoint.state import CheckpointState
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.files import disk_usage

KEEP = Retention(9, 9)
KILOBYTES = 3000


@pytest.fixture(params=["tmpfs", "ext4", "xfs", "btrfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A real file system of its own, of each kind that can be made here."""
    yield from formatted(request.param, tmp_path / "disk")


def fill(folder: Path, spare: int) -> Path:
    """A file of somebody else's that leaves `spare` bytes free, or as much as there is."""
    path = folder / "somebody_elses.bin"
    with path.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while disk_usage.measure_free(folder) > spare + (1 << 20):
                file.write(os.urandom(1 << 20))
            while disk_usage.measure_free(folder) > spare:
                file.write(os.urandom(1 << 12))
        with contextlib.suppress(OSError):
            os.fsync(file.fileno())
    return path


def test_on_full_disk_regular_save_fails_and_emergency_save_succeeds(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = disk / "run" / "checkpoints"
    manager = CheckpointManager(folder, KEEP, None)
    state = tensors_state(1, KILOBYTES)
    manager.reserve(KILOBYTES << 10)
    assert (folder / RESERVATION).stat().st_size >= KILOBYTES << 10
    kept = (folder / RESERVATION).stat().st_ino
    assert manager.save(state, request(1)) is not None
    assert (folder / RESERVATION).stat().st_ino == kept, "a regular save, should it fail, costs it"
    before = {path.name: path.stat().st_ino for path in Store(folder).files()}
    others = fill(disk, spare=0)

    assert manager.save({**state, "step": 2}, request(2)) is None
    assert {path.name: path.stat().st_ino for path in Store(folder).files()} == before
    warning = caplog.records[-1].message
    assert "SAVE FAILED at step 2" in warning and "checkpoints prune" in warning
    assert (folder / RESERVATION).exists(), "a regular save took what is kept for an emergency"

    saved = manager.save({**state, "step": 3}, request(3, emergency=True))
    assert saved is not None, caplog.text
    assert saved.path.stat().st_ino == kept, "somebody else could have taken the space first"
    assert step_of(saved.path) == step_of(folder / "latest.pt") == 3
    others.unlink()
    os.sync()
    assert manager.save({**state, "step": 4}, request(4)) is not None, caplog.text
    assert (folder / RESERVATION).stat().st_size >= KILOBYTES << 10, "not taken again"
    manager.close()
    assert names_in(folder) == {path.name for path in Store(folder).files()}, "leftovers"


def test_without_reservation_emergency_save_fails(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That the test above fills the disk for real."""
    folder = disk / "run" / "checkpoints"
    manager = CheckpointManager(folder, KEEP, None)
    assert manager.save(tensors_state(1, KILOBYTES), request(1)) is not None
    fill(disk, spare=0)
    assert manager.save(tensors_state(2, KILOBYTES), request(2, emergency=True)) is None
    assert "No space left" in caplog.text
    assert find_valid(folder, Role.LATEST).state.step == 1


def test_a_rollback_on_a_full_disk_is_archived_now_or_at_the_next_save(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = disk / "run" / "checkpoints"
    manager = CheckpointManager(folder, KEEP, None)
    manager.reserve(KILOBYTES << 10)
    small = tensors_state(1, 300)
    for step in (1, 2):
        assert manager.save({**small, "step": step}, request(step)) is not None
    others = fill(disk, spare=0)
    first = CheckpointState.from_dict({"step": 1})
    manager.roll_back_to(Found(folder / "rolling_step_000001.pt", first))
    assert manager.save({**small, "step": 3}, request(3, emergency=True)) is not None, caplog.text
    others.unlink()
    os.sync()
    assert manager.save({**small, "step": 4}, request(4)) is not None, caplog.text
    manager.close()
    [archive] = archive_folders(folder, ABANDONED)
    assert "rolling_step_000002.pt" in names_in(archive)
    assert "rolling_step_000002.pt" not in names_in(folder)
    assert step_of(folder / "latest.pt") == 4


# ---------------------------------------------------------------- the reserve by itself


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """8 MiB."""
    yield from mounted(["-t", "tmpfs", "-o", "size=8m", "tmpfs"], tmp_path / "small_disk")


def test_reservation_allocates_and_releases_disk_blocks(small_disk: Path) -> None:
    free = disk_usage.measure_free(small_disk)
    reserve = Reservation(small_disk)
    assert reserve.hold(3_000_000) is None
    assert free - disk_usage.measure_free(small_disk) >= with_margin(3_000_000)
    assert reserve.hold(2_000_000) is None, "less than what is held"
    assert reserve.hold(4_000_000) is None
    assert free - disk_usage.measure_free(small_disk) >= with_margin(4_000_000)
    reserve.release()
    assert disk_usage.measure_free(small_disk) == free
    assert names_in(small_disk) == set()


def test_reservation_that_cannot_grow_keeps_its_size(small_disk: Path) -> None:
    reserve = Reservation(small_disk)
    assert reserve.hold(3_000_000) is None
    assert reserve.hold(20_000_000) == "No space left on device"
    assert reserve.held == 3_000_000
    assert disk_usage.disk_bytes([reserve.path]) >= with_margin(3_000_000)
    other = Reservation(small_disk / "other")
    other.folder.mkdir()
    assert other.hold(20_000_000) == "No space left on device"
    assert names_in(other.folder) == set()


def test_missing_reservation_is_logged_once(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager = CheckpointManager(small_disk, KEEP, None)
    manager.reserve(20_000_000)
    for step in (1, 2):
        assert manager.save(tensors_state(step, 100), request(step)) is not None
    said = [record.message for record in caplog.records if "no space is kept" in record.message]
    assert len(said) == 1
    assert "No space left on device" in said[0]


def test_file_system_that_does_not_allocate_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", lambda descriptor, start, size: None)
    assert "does not allocate the space" in str(Reservation(tmp_path).hold(1 << 20))
    monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    assert "cannot reserve space" in str(Reservation(tmp_path).hold(1 << 20))
    assert names_in(tmp_path) == set()


def test_start_deletes_reservation_of_dead_process(tmp_path: Path) -> None:
    assert Reservation(tmp_path).hold(1 << 20) is None  # and the process dies
    CheckpointManager(tmp_path, KEEP, None)
    assert names_in(tmp_path) == set()


def test_failed_save_reports_reserved_space(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    manager = CheckpointManager(small_disk, KEEP, None)
    manager.reserve(3_000_000)
    assert manager.save(tensors_state(1, 2900), request(1)) is None
    assert "are kept for an emergency save" in caplog.text
    assert manager.save(tensors_state(1, 2900), request(1, emergency=True)) is not None


def test_a_quota_is_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit of btrfs on a subvolume holds for everybody, and no df shows it."""
    for disk in formatted("btrfs", tmp_path / "disk"):
        folder = disk / "checkpoints"
        for words in (
            ["subvolume", "create", str(folder)],
            ["quota", "enable", str(disk)],
            ["qgroup", "limit", "8M", str(folder)],
        ):
            done = subprocess.run(["btrfs", *words], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        manager = CheckpointManager(folder, KEEP, None)
        manager.reserve(1_300_000)
        saves = [manager.save(tensors_state(n, 1200), request(n)) for n in range(1, 5)]
        assert [bool(save) for save in saves] == [True, True, False, False], caplog.text
        assert "SAVE FAILED at step 4: Disk quota exceeded" in caplog.text
        assert "checkpoints prune" in caplog.text
        last = manager.save(tensors_state(5, 1200), request(5, emergency=True))
        assert last is not None, caplog.text
        assert find_valid(folder, Role.LATEST).state.step == 5


HANGING = """
import sys
from pathlib import Path
from gpt2ckpt.files import disk_usage
disk_usage.ANSWER_SECONDS = 0.2
for _ in range(3):
    assert disk_usage.measure_free(Path(sys.argv[1])) == disk_usage.UNKNOWN_FREE
"""


def test_unresponsive_file_system_does_not_block(tmp_path: Path) -> None:
    faults = preload.build(tmp_path)
    faults.set(("statvfs", -600, str(tmp_path)))
    done = subprocess.run(
        [sys.executable, "-c", HANGING, str(tmp_path)],
        **{"env": faults.environment, "capture_output": True, "text": True, "timeout": 120},
    )
    assert done.returncode == 0, done.stderr
