"""Asking a file system that fails or hangs."""

import errno
import threading

import pytest

from gpt2ckpt.files.timeouts import call_with_timeout


def test_an_answer_an_error_and_silence() -> None:
    def fail() -> int:
        raise OSError(errno.EIO, "no answer")

    never = threading.Event()
    assert call_with_timeout(60, lambda: 5) == 5
    assert call_with_timeout(60, fail) is None
    assert call_with_timeout(0.05, never.wait) is None
    never.set()


def test_a_mistake_in_the_code_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        call_with_timeout(60, lambda: 1 // 0)
