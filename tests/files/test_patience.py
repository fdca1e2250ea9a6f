"""Asking a file system that fails or hangs."""

import errno
import threading

import pytest

from gpt2ckpt.files.patience import within


def test_an_answer_an_error_and_silence() -> None:
    def fail() -> int:
        raise OSError(errno.EIO, "no answer")

    never = threading.Event()
    assert within(60, lambda: 5) == 5
    assert within(60, fail) is None
    assert within(0.05, never.wait) is None
    never.set()


def test_a_mistake_in_the_code_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 // 0)
