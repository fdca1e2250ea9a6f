"""Tests of the run lock between machines, and on file systems without kernel locks.

A second machine is simulated by namespaces: a process with its own host name and boot id sees the
directory through an overlay, so that other processes do not see its kernel locks.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from run_helpers import tree

from gpt2ckpt.errors import InputError
from gpt2ckpt.runs.lock import LOCK_NAME, RunLock, is_locked, refuse_if_locked
from gpt2ckpt.runs.owner import Verdict, birth_of, decode, encode, judge, this_process

ELSEWHERE = r"""
set -e
hostname othermachine
echo 11111111-2222-3333-4444-555555555555 > boot_id
mount --bind boot_id /proc/sys/kernel/random/boot_id
mkdir -p lower work merged
mount -t overlay overlay -o lowerdir=lower,upperdir=run,workdir=work merged
exec "$0" -c "$1" merged
"""
HOLD = """
import sys, time
from pathlib import Path
from gpt2ckpt.runs.lock import RunLock
lock = RunLock(Path(sys.argv[1]), beat=0.1)
print("locked", flush=True)
sys.stdin.read()
lock.release()
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@contextmanager
def on_another_machine(run: Path, script: str) -> Iterator["subprocess.Popen[str]"]:
    """Run `script` as another machine sees the directory; skip the test if that is impossible."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("needs root and unshare, to make namespaces and to mount an overlay")
    command = ["unshare", "--uts", "--mount", "sh", "-c", ELSEWHERE, sys.executable, script]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, cwd=run.parent, env=env, text=True, **pipes) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            if process.stdout.readline() != "locked\n":
                process.wait(timeout=60)
                said = process.stderr.read()
                if "mount" in said or "unshare" in said or "hostname" in said:
                    pytest.skip(f"needs a kernel that lets root mount an overlay: {said.strip()}")
                raise AssertionError(said)
            yield process
        finally:
            process.kill()


def test_run_that_is_alive_on_another_machine_is_refused(run: Path) -> None:
    with on_another_machine(run, HOLD) as process:
        assert is_locked(run)  # until it is known, nothing may be taken from it
        with pytest.raises(InputError, match=r"is being trained by process \d+ on othermachine"):
            RunLock(run, watch=60)
        assert [path.name for path in run.iterdir()] == [LOCK_NAME]
        process.communicate("", timeout=60)
    assert not is_locked(run)
    assert tree(run) == {}


def test_run_that_died_on_another_machine_is_taken_over(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with on_another_machine(run, HOLD) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with RunLock(run, watch=1.5):
            owner = decode((run / LOCK_NAME).read_bytes())
            assert owner is not None and owner.pid == os.getpid()
    assert "was locked by process" in caplog.text and "on othermachine" in caplog.text
    assert tree(run) == {}


def test_suspended_process_stops_if_its_run_was_taken_over(run: Path) -> None:
    with on_another_machine(run, HOLD) as process:
        process.send_signal(signal.SIGSTOP)
        with RunLock(run, watch=1.5):
            process.send_signal(signal.SIGCONT)
            assert process.wait(timeout=60) == -signal.SIGTERM
            owner = decode((run / LOCK_NAME).read_bytes())
            assert owner is not None and owner.pid == os.getpid()


def test_changing_record_is_never_taken_over(run: Path) -> None:
    """Even a torn record, or one of a later version."""
    (run / LOCK_NAME).write_text("{")
    script = f"import time\nwhile True:\n open({str(run / LOCK_NAME)!r}, 'a').write(' ')\n"
    with subprocess.Popen([sys.executable, "-c", script + " time.sleep(0.1)"]) as process:
        try:
            with pytest.raises(InputError, match="by another process"):
                RunLock(run, watch=60)
        finally:
            process.kill()


def test_record_changes_while_held_and_is_removed_at_release(run: Path) -> None:
    with RunLock(run, beat=0.01):
        first = (run / LOCK_NAME).read_bytes()
        end = time.monotonic() + 60
        while (run / LOCK_NAME).read_bytes() == first:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert len((run / LOCK_NAME).read_bytes()) == len(first)
        assert decode(first) == decode((run / LOCK_NAME).read_bytes())
    assert tree(run) == {}


def test_failed_heartbeat_does_not_stop_the_run(run: Path) -> None:
    with RunLock(run, beat=0.01) as lock:
        (run / LOCK_NAME).unlink()
        (run / LOCK_NAME).mkdir()
        time.sleep(0.1)
        assert lock._heart.is_alive()
        (run / LOCK_NAME).rmdir()


ME = this_process()


@pytest.mark.parametrize(
    ("owner", "is_free", "expected"),
    [
        (ME, True, Verdict.DEAD),  # the kernel lock of the living would not have been to be had
        (ME, False, Verdict.ALIVE),
        (replace(ME, birth=ME.birth - 1), False, Verdict.DEAD),  # its number is another's now
        (replace(ME, pid=2**22 + 1), False, Verdict.DEAD),
        (replace(ME, pids="pid:[1]"), False, Verdict.UNKNOWN),  # a container: other numbers
        (replace(ME, pids="pid:[1]", host="container"), True, Verdict.DEAD),
        (replace(ME, boot="another"), True, Verdict.UNKNOWN),  # machines may share a name
        (replace(ME, boot="another"), False, Verdict.UNKNOWN),
        (replace(ME, boot=""), True, Verdict.DEAD),
        (replace(ME, boot="", host="another"), True, Verdict.UNKNOWN),
        (None, True, Verdict.UNKNOWN),
    ],
)
def test_judge_gives_the_verdict_for_each_owner(
    owner: object, is_free: bool, expected: Verdict
) -> None:
    assert judge(owner, ME, kernel_lock_is_free=is_free) is expected  # type: ignore[arg-type]


def test_birth_of_reads_any_process_name() -> None:
    name = "import ctypes,sys; ctypes.CDLL(None).prctl(15, b') Z 1 (', 0, 0, 0); print(1, flush=1)"
    command = [sys.executable, "-c", f"{name}; sys.stdin.read()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = birth_of(process.pid)
        assert began is not None and began >= ME.birth
        process.kill()
        process.wait()
    assert birth_of(process.pid) is None


def test_is_locked_on_another_machine_writes_nothing(run: Path) -> None:
    (run / LOCK_NAME).write_bytes(encode(replace(ME, boot="another"), 3))
    before = tree(run)
    assert is_locked(run)
    refuse_if_locked(run)  # it may be dead: who wants to train watches it
    assert tree(run) == before
