"""A background thread that runs actions in order, so that its callers never block.

It is used for operations that may hang and must not delay training: output to a console whose
reader has stopped, requests to a service that does not respond, and files on a failed disk.
"""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

POLL = 0.05  # seconds between two checks of a worker in `wait`

T = TypeVar("T")


class Worker:
    """Runs submitted actions in order, in a daemon thread.

    All methods are safe in any thread and in signal handlers: none takes a lock that another
    method holds while it waits. Actions must not raise.

    Args:
        name: the name of the thread.
        limit: how many actions may be queued.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._limit = limit
        # Unlike queue.Queue, which has a lock, SimpleQueue can be used in signal handlers.
        self._actions: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._is_running = False
        self._last_beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, action: Callable[[], object]) -> bool:
        """Queue `action` and return True; return False and drop it if the queue is full."""
        if self._actions.qsize() >= self._limit:
            return False
        self._put(action)
        return True

    @property
    def backlog(self) -> int:
        """Return the number of queued actions."""
        return self._actions.qsize()

    @property
    def silence(self) -> float:
        """Return the seconds since the last progress of the running action; 0 if idle."""
        is_busy = self._is_running or not self._actions.empty()
        return time.monotonic() - self._last_beat if is_busy else 0.0

    def beat(self) -> None:
        """Record that the running action makes progress."""
        self._last_beat = time.monotonic()

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end after `close`, at most `seconds`; return whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def native_id(self) -> int | None:
        """Return the kernel's id of the thread."""
        return self._thread.native_id

    def wait(self, seconds: float, silence: float | None = None) -> bool:
        """Wait until all submitted actions are done, and return whether they are.

        Args:
            seconds: the longest time to wait.
            silence: end the wait after this many seconds without progress.
        """
        done, end = threading.Event(), time.monotonic() + seconds
        self._put(done.set)
        while not done.wait(max(0.0, min(POLL, end - time.monotonic()))):
            if time.monotonic() >= end or (silence is not None and self.silence > silence):
                return done.is_set()
        return True

    def close(self) -> None:
        """End the thread after the queued actions. Nothing may be submitted afterwards."""
        self._actions.put(None)

    def _put(self, action: Callable[[], object]) -> None:
        if not self._is_running and self._actions.empty():
            self.beat()  # idle time does not count as silence
        self._actions.put(action)

    def _run(self) -> None:
        while True:
            action = self._actions.get()
            if action is None:
                return
            self._is_running = True
            self.beat()
            action()
            del action  # release its objects before waiting for the next action
            self.beat()
            self._is_running = False


def call_with_timeout(seconds: float, action: Callable[[], T]) -> T | None:
    """Return the result of `action`; None if it raises OSError or takes longer than `seconds`.

    `action` runs in a daemon thread, which is abandoned if the file system hangs.
    """
    answer: Future[T] = Future()
    threading.Thread(target=resolve, args=(answer, action), daemon=True).start()
    try:
        return answer.result(seconds)
    except OSError:  # also TimeoutError, which is an OSError
        return None


def resolve(answer: "Future[T]", action: Callable[[], T]) -> None:
    """Run `action`, and set `answer` to its result or error."""
    try:
        answer.set_result(action())
    except BaseException as error:
        answer.set_exception(error)
