"""Calls into a file system that may hang."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from gpt2ckpt.worker import resolve

T = TypeVar("T")


def call_with_timeout(seconds: float, action: Callable[[], T]) -> T | None:
    """Return the result of `action`; None if it raises OSError or takes longer than `seconds`.

    `action` runs in a daemon thread, which is abandoned if the file system hangs.
    """
    answer: Future[T] = Future()
    threading.Thread(target=resolve, args=(answer, action), daemon=True).start()
    try:
        return answer.result(seconds)
    except OSError:  # TimeoutError is one, too
        return None
