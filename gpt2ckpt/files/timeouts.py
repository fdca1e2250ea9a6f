"""Calls into a file system that may hang."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def call_with_timeout(seconds: float, action: Callable[[], T]) -> T | None:
    """Return the result of `action`; None if it raises OSError or takes longer than `seconds`.

    `action` runs in a daemon thread, which is abandoned if the file system hangs.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(action())
        except OSError:
            pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    return results[0] if results else None
