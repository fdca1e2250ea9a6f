"""Kernel locks exclude other processes; file systems without locks are recognized."""

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from gpt2ckpt.files.locks import Lock, try_lock


def test_exclusive_lock_excludes_others_and_shared_locks_coexist(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    try:
        assert try_lock(first, shared=True) is Lock.TAKEN
        assert try_lock(second, shared=True) is Lock.TAKEN
        assert try_lock(second) is Lock.HELD
    finally:
        os.close(first)
    assert try_lock(second) is Lock.TAKEN
    os.close(second)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_file_system_without_locks_is_unsupported(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    assert try_lock(0) is Lock.UNSUPPORTED


def test_try_lock_waits_if_asked_to(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    try_lock(first)
    timer = threading.Timer(0.1, os.close, [first])
    timer.start()
    try:
        assert try_lock(second, wait=True) is Lock.TAKEN
    finally:
        timer.join()
        os.close(second)
