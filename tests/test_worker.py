"""Calls into a file system that fails or hangs."""

import errno
import threading

import pytest

from gpt2ckpt.worker import call_with_timeout


def test_call_with_timeout_returns_none_on_error_and_timeout() -> None:
    def fail() -> int:
        raise OSError(errno.EIO, "no answer")

    never = threading.Event()
    assert call_with_timeout(60, lambda: 5) == 5
    assert call_with_timeout(60, fail) is None
    assert call_with_timeout(0.05, never.wait) is None
    never.set()


def test_call_with_timeout_raises_programming_errors() -> None:
    with pytest.raises(ZeroDivisionError):
        call_with_timeout(60, lambda: 1 // 0)
