"""Tests of the run lock on one machine."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from run_helpers import tree

from gpt2ckpt.errors import InputError
from gpt2ckpt.runs.layout import LINEAGE
from gpt2ckpt.runs.lock import LOCK_NAME, RunLock, is_locked, refuse_if_locked

HOLD = """
import sys, time
from pathlib import Path
from gpt2ckpt.runs.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(600)
"""


@contextmanager
def live_run(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is killed."""
    command = [sys.executable, "-c", HOLD, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def test_error_names_process_and_host_of_a_live_run(tmp_path: Path) -> None:
    with live_run(tmp_path) as process:
        before = tree(tmp_path)
        assert is_locked(tmp_path)
        for attempt in (RunLock, refuse_if_locked):
            with pytest.raises(InputError) as raised:
                attempt(tmp_path)
            for word in (str(tmp_path), f"process {process.pid} ", socket.gethostname()):
                assert word in str(raised.value)
        assert tree(tmp_path) == before


def test_lock_of_a_killed_run_is_taken_over(tmp_path: Path) -> None:
    with live_run(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK_NAME).exists()
        assert not is_locked(tmp_path)
        refuse_if_locked(tmp_path)
        with RunLock(tmp_path):
            assert f'"pid": {os.getpid()},' in (tmp_path / LOCK_NAME).read_text()
            assert is_locked(tmp_path)


def test_record_of_a_newer_owner_is_restored(tmp_path: Path) -> None:
    """Two processes find a dead owner; the slower one finds the record of the faster one."""
    with RunLock(tmp_path) as faster:
        record = (tmp_path / LOCK_NAME).read_bytes()
        faster._remove(b"the record of the dead owner")
        assert (tmp_path / LOCK_NAME).read_bytes() == record
        faster._remove(record)
        assert not (tmp_path / LOCK_NAME).exists()


def test_torn_lock_record_is_replaced(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text('{"pid": 1, "host": "' + "x" * 500)
    lock = RunLock(tmp_path, watch=0.1)
    with lock, pytest.raises(InputError, match=f"process {os.getpid()} on "):
        RunLock(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 3}', "\udcff"])
def test_unreadable_lock_record_still_locks(tmp_path: Path, content: str) -> None:
    with RunLock(tmp_path):
        (tmp_path / LOCK_NAME).write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(InputError, match="is being trained by another process"):
            RunLock(tmp_path)


def test_deleting_run_lock_does_not_release_a_live_run(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / LOCK_NAME).unlink()
        assert is_locked(tmp_path)
        with pytest.raises(InputError, match="is being trained by another process"):
            RunLock(tmp_path)


def test_check_detects_another_run_under_the_same_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with RunLock(run) as lock:
        lock.check()
        run.rename(tmp_path / "moved")
        lock.check()
        run.mkdir()
        with live_run(run) as process:
            with pytest.raises(OSError, match=f"is being trained by process {process.pid} on"):
                lock.check()
            (run / LOCK_NAME).unlink()  # as at its end, which leaves the history
            (run / LINEAGE).write_text("another")
            lock.check()
            (tmp_path / "moved" / LINEAGE).write_text("own")
            with pytest.raises(OSError, match="run now belongs to a different run"):
                lock.check()
            (run / LINEAGE).write_text("own")
            lock.check()


def test_undo_leaves_the_directory_unchanged(tmp_path: Path) -> None:
    """A start that is refused, or finds a finished run, changes nothing that a backup would see."""
    before = tmp_path.stat().st_mtime_ns
    lock = RunLock(tmp_path)
    assert tmp_path.stat().st_mtime_ns != before
    lock.undo()
    lock.undo()
    assert (tmp_path.stat().st_mtime_ns, tree(tmp_path)) == (before, {})
    assert not is_locked(tmp_path)


def test_is_locked_writes_nothing(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "missing")
    refuse_if_locked(tmp_path)
    assert tree(tmp_path) == {}


def test_child_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    """W&B starts processes that may outlive a killed training."""
    lock = RunLock(tmp_path)
    with subprocess.Popen(["sleep", "600"], close_fds=False) as child:
        lock.release()
        assert not is_locked(tmp_path)
        child.kill()


def test_lock_is_released_at_the_end_of_its_block(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        assert is_locked(tmp_path)
        _ = 1 / 0
    assert not is_locked(tmp_path)


ENDS = """
import sys
from pathlib import Path
from gpt2ckpt.runs.lock import RunLock
RunLock(Path(sys.argv[1]))
sys.exit("for another reason")
"""


def test_lock_is_released_at_process_exit(tmp_path: Path) -> None:
    """Otherwise another machine would watch the dead owner for a minute."""
    done = subprocess.run([sys.executable, "-c", ENDS, str(tmp_path)], capture_output=True)
    assert (done.returncode, done.stderr) == (1, b"for another reason\n")
    assert tree(tmp_path) == {}
