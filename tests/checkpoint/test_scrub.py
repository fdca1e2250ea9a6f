"""Damage on disk is found and repaired while a run trains, and nothing waits for the repair."""

import errno
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import preload
import pytest
from checkpoint_helpers import (
    NOON,
    flip_random_byte,
    names_in,
    put,
    request,
    small_state,
    step_of,
    tensors_state,
)

from gpt2ckpt.checkpoint import scrub
from gpt2ckpt.checkpoint.manager import CheckpointManager, SavingOptions
from gpt2ckpt.checkpoint.names import Role, role_of
from gpt2ckpt.checkpoint.repair import diagnose
from gpt2ckpt.checkpoint.retention import Retention
from gpt2ckpt.checkpoint.scrub import Scrub
from gpt2ckpt.checkpoint.store import Store

KEEP = Retention(9, 9)
PATIENCE = 120  # seconds


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


def never() -> bool:
    return False


def full_round(folder: Path) -> Scrub:
    scrubber = Scrub(folder, 1e6)
    scrubber.request()
    scrubber.run(never)
    return scrubber


def test_round_logs_files_and_bytes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for step in (1, 2):
        put(tmp_path, step)
    full_round(tmp_path)
    [message] = caplog.messages
    assert message.startswith("checked every byte of 3 files on disk (")


@pytest.mark.parametrize("name", ["latest.pt", "rolling_last_backup.pt"])
def test_damaged_file_is_replaced_and_quarantined(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    for step in (1, 2):
        put(tmp_path, step)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    flip_random_byte(tmp_path / name, seed=1)
    damaged = (tmp_path / name).read_bytes()
    full_round(tmp_path)
    assert {path.name: path.read_bytes() for path in Store(tmp_path).files()} == before
    [quarantine] = tmp_path.glob("corrupt_*")
    assert (quarantine / name).read_bytes() == damaged
    [warning] = warnings(caplog)
    assert warning.startswith("DAMAGED ON DISK") and name in warning and quarantine.name in warning


def test_damaged_file_without_copy_is_quarantined(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It would be one of the files that its pool keeps, and push a valid one out."""
    for step in (1, 2):
        put(tmp_path, step)
    flip_random_byte(tmp_path / "rolling_step_000001.pt", seed=1)
    before = {path.name: path.read_bytes() for path in Store(tmp_path).files()}
    scrubber = full_round(tmp_path)
    scrubber.request()
    scrubber.run(never)
    left = {path.name: path.read_bytes() for path in Store(tmp_path).files()}
    moved = {path.name: path.read_bytes() for path in tmp_path.glob("corrupt_*/*")}
    assert moved.keys() == {"rolling_step_000001.pt", "latest_backup.pt"}
    assert {**left, **moved} == before
    [warning] = warnings(caplog)
    assert "No copy of that state is left; it is kept in corrupt_" in warning


def test_every_pool_is_verified(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        put(tmp_path, step, regular=True, best=True)
    for reasons in ({"regular": True}, {"emergency": True}):
        put(tmp_path, 3, **reasons)
    assert Store(tmp_path).roll_back_to(tmp_path / "rolling_step_000002.pt", 2, NOON) is not None
    put(tmp_path, 4, epoch_ended=0)
    put(tmp_path, 4, emergency=True)
    put(tmp_path, 5, regular=True)
    paths = sorted(tmp_path.rglob("*.pt"))
    assert {role_of(path.name) for path in paths} == set(Role)
    files = {path.stat().st_ino: path for path in paths}
    for path in files.values():
        flip_random_byte(path, seed=1)
    full_round(tmp_path)
    said = warnings(caplog)
    assert len(said) == len(files)
    assert all(any(path.name in line for line in said) for path in paths)


def test_file_valid_at_second_read_is_not_repaired(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, 1)
    good = (tmp_path / "latest.pt").read_bytes()
    flip_random_byte(tmp_path / "latest.pt", seed=1)
    scrubber = Scrub(tmp_path, 1e6)
    scrubber.request()
    real = scrubber._confirmed

    def mended(is_wanted: Callable[[], bool]) -> list[scrub.Corrupt]:
        stat = (tmp_path / "latest.pt").stat()
        (tmp_path / "latest.pt").write_bytes(good)
        os.utime(tmp_path / "latest.pt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        return real(is_wanted)

    scrubber._confirmed = mended  # type: ignore[method-assign]
    scrubber.run(never)
    assert warnings(caplog) == []
    assert not list(tmp_path.glob("corrupt_*"))


@pytest.mark.parametrize("is_silent", [True, False])
def test_copy_damaged_after_verification_is_not_used(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    is_silent: bool,
) -> None:
    """By the disk itself, of which the file system knows nothing, or by somebody who writes."""
    put(tmp_path, 1)
    flip_random_byte(tmp_path / "latest.pt", seed=1)
    scrubber = Scrub(tmp_path, 1e6)
    scrubber.request()
    real, copy = scrubber._confirmed, tmp_path / "rolling_last_backup.pt"

    def then_damaged(is_wanted: Callable[[], bool]) -> list[scrub.Corrupt]:
        found, stat = real(is_wanted), copy.stat()
        flip_random_byte(copy, seed=2)
        if is_silent:
            os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        return found

    monkeypatch.setattr(scrubber, "_confirmed", then_damaged)
    before = {path.name: path.stat().st_ino for path in Store(tmp_path).files()}
    scrubber.run(never)
    found = {path.name: path.stat().st_ino for path in tmp_path.rglob("*.pt")}
    assert found == before
    assert [path.name for path in Store(tmp_path).files()] == [copy.name]
    [warning] = warnings(caplog)
    assert "No copy of that state is left" in warning


def test_read_speed_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, 1)
    size = (tmp_path / "latest.pt").stat().st_size
    naps: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(scrub.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(scrub.time, "sleep", sleep)
    scrubber = Scrub(tmp_path, size / 1e6)  # a file a second
    scrubber.request()
    scrubber.run(never)
    assert sum(naps) >= 2, "two files of that size were read in less than two seconds"
    assert max(naps) <= scrub.NAP, "a save would wait for the nap"


def test_interrupted_round_resumes_with_same_file(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        put(tmp_path, step)
    scrubber = Scrub(tmp_path, 1e6)
    scrubber.request()
    stops = 0

    def after_some() -> bool:
        return scrubber._bytes > 4000 * (stops + 1)

    while scrubber._under_way:
        scrubber.run(after_some)
        stops += 1
        assert stops < 100
    assert stops > 1
    files = {path.stat().st_ino for path in Store(tmp_path).files()}
    assert {key[1] for key in scrubber._checked} == files


def test_saves_and_the_end_do_not_wait_for_a_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At a tenth of a megabyte a second the first round takes most of a minute."""
    caplog.set_level(logging.INFO)
    state = tensors_state(1, kilobytes=2000)
    CheckpointManager(tmp_path, KEEP, None).save(state, request(1))
    manager = CheckpointManager(
        tmp_path, KEEP, None, options=SavingOptions(True, scrub_every=1, scrub_mb_per_s=0.1)
    )
    until(lambda: manager._scrub._bytes > 0)
    assert manager.save({**state, "step": 2}, request(2, emergency=True)) is not None
    manager.save({**state, "step": 3}, request(3))
    assert manager.wait()
    until(lambda: manager._scrub._bytes > 0)
    manager.close()
    writer = manager._writer
    assert writer._worker.join(0) and not writer._watcher.is_alive()
    assert "checked every byte" not in caplog.text
    assert step_of(tmp_path / "latest.pt") == 3


def test_run_repairs_files_at_start_and_between_saves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for step in (1, 2):
        put(tmp_path, step, regular=True, best=True)
    flip_random_byte(tmp_path / "best_model.pt", seed=2)
    manager = CheckpointManager(
        tmp_path, KEEP, None, options=SavingOptions(True, scrub_every=2, scrub_mb_per_s=1e6)
    )
    until(lambda: len(warnings(caplog)) == 1)
    assert step_of(tmp_path / "best_model.pt") == 2
    manager.save(small_state(3), request(3))
    assert manager.wait()
    flip_random_byte(tmp_path / "best_model_backup.pt", seed=3)
    manager.save(small_state(4), request(4))
    assert manager.wait()
    until(lambda: len(warnings(caplog)) == 2)
    manager.close()
    assert step_of(tmp_path / "best_model_backup.pt") == 2
    assert {name for name in names_in(tmp_path) if name.endswith(".tmp")} == set()


HANGING = """
import logging, sys, time
from pathlib import Path
from checkpoint_helpers import request, small_state
from gpt2ckpt.checkpoint import guard
from gpt2ckpt.checkpoint.manager import CheckpointManager, SavingOptions
from gpt2ckpt.checkpoint.retention import Retention
from gpt2ckpt.checkpoint.repair import diagnose
logging.basicConfig(level="INFO", format="%(message)s")
guard.PATIENCE = 1.0
manager = CheckpointManager(
    Path(sys.argv[1]), Retention(9, 9), None, options=SavingOptions(True, scrub_every=1)
)
for step in (2, 3, 4):
    manager.save(small_state(step), request(step))
    time.sleep(0.3)
manager.close()
"""


def test_a_read_that_hangs_delays_neither_saves_nor_the_end(tmp_path: Path) -> None:
    faults, folder = preload.build(tmp_path), tmp_path / "checkpoints"
    folder.mkdir()
    put(folder, 1)
    faults.set(("read", -600, ".pt$"))  # a save reads its file back under another name
    done = subprocess.run(
        [sys.executable, "-c", HANGING, str(folder)],
        **{"env": {**faults.environment, "PYTHONPATH": os.pathsep.join(sys.path)}, "timeout": 120},
        **{"capture_output": True, "text": True},
    )
    assert done.returncode == 0, done.stderr
    for step in (2, 3, 4):
        assert f"saved rolling_step_00000{step}.pt" in done.stderr
    assert "checked every byte" not in done.stderr
    assert "latest.pt: no byte of it was read for 1 s; the file was moved to" in done.stderr
    assert len(list(folder.glob("corrupt_*/latest.pt"))) == 1  # no save has lost it


def test_without_scrubs_nothing_is_read(tmp_path: Path) -> None:
    put(tmp_path, 1)
    manager = CheckpointManager(tmp_path, KEEP, None, options=SavingOptions(in_background=True))
    for step in (2, 3):
        manager.save(small_state(step), request(step))
    manager.close()
    assert manager._scrub._bytes == 0


@pytest.mark.parametrize(("number", "is_damage"), [(preload.EIO, True), (errno.EMFILE, False)])
def test_a_file_that_cannot_be_opened_is_not_damaged(
    tmp_path: Path, number: int, is_damage: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a device that fails to read it nothing better is known."""
    put(tmp_path, 1)
    before = {path.name: path.stat().st_ino for path in Store(tmp_path).files()}
    real = os.open

    def fail(path: object, *arguments: object, **options: object) -> int:
        if str(path).endswith("latest.pt"):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", fail)
        full_round(tmp_path)
        if not is_damage:
            with pytest.raises(OSError, match="Too many open files"):
                diagnose(tmp_path)
    [warning] = warnings(caplog)
    assert ("DAMAGED ON DISK" in warning) == is_damage
    if not is_damage:
        assert {path.name: path.stat().st_ino for path in Store(tmp_path).files()} == before
