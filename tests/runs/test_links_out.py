"""Tests that a run writes nothing through links in its directory."""

import os
import time
from pathlib import Path

import pytest

from gpt2ckpt.checkpoint.emergency_reserve import RESERVATION, Reservation
from gpt2ckpt.errors import InputError
from gpt2ckpt.files.durable import publish
from gpt2ckpt.loggers.fanout import Loggers
from gpt2ckpt.loggers.metrics_file import MetricsFile, read
from gpt2ckpt.loggers.tensorboard import TensorBoardLogger
from gpt2ckpt.loggers.wandb import WandbLogger
from gpt2ckpt.runs.layout import LOCK_NAME, RECORD
from gpt2ckpt.runs.lock import WRITTEN, RunLock, refuse_if_locked


@pytest.mark.parametrize("name", WRITTEN)
def test_link_that_a_run_would_write_through_is_refused(name: str, tmp_path: Path) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    run.mkdir()
    (run / name).symlink_to(victim)
    with pytest.raises(InputError, match=f"{name} is a symbolic link"):
        RunLock(run)
    assert victim.read_text() == "precious"
    (run / name).unlink()
    RunLock(run).release()


@pytest.mark.parametrize("name", WRITTEN)
def test_file_of_a_run_that_is_not_regular_is_refused(name: str, tmp_path: Path) -> None:
    """A folder used to raise another error, and a pipe used to block."""
    path = tmp_path / name
    for make in (path.touch,) if name == RECORD else (path.mkdir, lambda: os.mkfifo(path)):
        make()
        with pytest.raises(InputError, match=rf"{name} is not a (regular file|folder)"):
            RunLock(tmp_path)
        refuse_if_locked(tmp_path)
        assert list(tmp_path.iterdir()) == [path]
        if path.is_dir():
            path.rmdir()


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_reserved_space_is_not_taken_through_a_link(tmp_path: Path, kind: str) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "checkpoints"
    victim.write_text("precious")
    folder.mkdir()
    (folder / RESERVATION).symlink_to(victim)
    assert Reservation(folder).hold(1 << 20) is not None
    assert list(folder.iterdir()) == []
    spare = folder / RESERVATION
    spare.symlink_to(victim) if kind == "symbolic" else os.link(victim, spare)
    publish(folder / "latest.pt", [b"state"], lambda path: None, spare=spare)
    assert victim.read_text() == "precious"
    assert [path.name for path in folder.iterdir()] == ["latest.pt"]
    assert (folder / "latest.pt").read_bytes() == b"state"


@pytest.mark.parametrize("kind", ["symbolic", "hard", "other"])
def test_heartbeat_writes_only_to_its_own_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """run.lock is replaced by a link or another file while the run is alive."""
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious " * 200)
    run.mkdir()
    lock = RunLock(run, beat=0.02)
    path = run / LOCK_NAME
    path.unlink()
    if kind == "symbolic":
        path.symlink_to(victim)
    elif kind == "hard":
        os.link(victim, path)
    else:
        path.write_text("notes")
    deadline = time.monotonic() + 60
    while "it is not written" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lock.release()
    assert victim.read_text() == "precious " * 200
    assert path.is_symlink() or path.read_text() in ("notes", "precious " * 200)
    assert caplog.text.count("it is not written") == 1


def test_heartbeat_does_not_change_a_hard_linked_snapshot(tmp_path: Path) -> None:
    with RunLock(tmp_path, beat=0.02):
        path, snapshot = tmp_path / LOCK_NAME, tmp_path / "snapshot"
        os.link(path, snapshot)
        time.sleep(0.1)  # a beat that came in between is in the snapshot
        before, deadline = snapshot.read_bytes(), time.monotonic() + 60
        while path.read_bytes() == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        beat = path.read_bytes()
        while path.read_bytes() == beat:
            assert time.monotonic() < deadline, "it goes on in a file of its own"
            time.sleep(0.02)
        assert snapshot.read_bytes() == before
    assert not path.exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_logger_with_a_linked_folder_is_disabled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    for folder in (victim, run):
        folder.mkdir()
    (run / name).symlink_to(victim)
    wandb = {"project": "p", "entity": None, "tags": (), "name": "n", "config": {}}
    loggers = Loggers(MetricsFile(run / "metrics.jsonl"))
    if name == "wandb":
        loggers.add("W&B", lambda: WandbLogger(run, run_id="1", resume=True, **wandb))
    else:
        loggers.add("TensorBoard", lambda: TensorBoardLogger(run / name))
    loggers.log({"step": 1, "train_loss": 1.0})
    loggers.close(60)
    [warning] = [record.message for record in caplog.records if "is disabled" in record.message]
    assert f"{run / name} is a symbolic link" in warning
    assert list(victim.iterdir()) == []
    assert len(read(run / "metrics.jsonl")) == 1


def test_deeply_nested_lock_record_is_ignored(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / "run.lock").write_text("[" * 200_000)
        with pytest.raises(InputError, match="another process"):
            RunLock(tmp_path)
