"""A daemon thread that runs actions one after another, so that nobody else waits for them.

For whatever may hang and must not hold a training: a console whose reader has stopped, a service
that takes nothing, a file on a disk that is gone.
"""

import queue
import threading
import time
from collections.abc import Callable

POLL = 0.05  # seconds between two looks at a worker that is waited for


class Worker:
    """Runs actions in their order in a thread of its own.

    Safe for any thread and for signal handlers: no method takes a lock that another one holds while
    it waits. An action must not raise. The thread does not keep the process alive.

    Args:
        name: of the thread.
        limit: how many actions may wait for their turn.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._limit = limit
        # Unlike queue.Queue, which has a lock, it can be used in signal handlers.
        self._actions: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._is_running = False
        self._last_beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def hand_over(self, action: Callable[[], object]) -> bool:
        """Run `action` after all earlier ones. Returns False if too many wait: it is left out."""
        if self._actions.qsize() >= self._limit:
            return False
        self._actions.put(action)
        return True

    @property
    def backlog(self) -> int:
        """How many actions wait for their turn."""
        return self._actions.qsize()

    @property
    def silence(self) -> float:
        """Seconds since the worker last began or ended an action; 0 while it has nothing to do."""
        is_busy = self._is_running or not self._actions.empty()
        return time.monotonic() - self._last_beat if is_busy else 0.0

    def beat(self) -> None:
        """Note that the running action makes progress."""
        self._last_beat = time.monotonic()

    def has_ended(self, seconds: float) -> bool:
        """Wait so long at most for the thread to end after `close`; return whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def native_id(self) -> int | None:
        """The kernel's number of the thread."""
        return self._thread.native_id

    def wait(self, seconds: float, silence: float | None = None) -> bool:
        """Wait until everything that was handed over so far is done.

        Args:
            seconds: how long at most.
            silence: seconds without progress after which the rest is not worth waiting for.

        Returns:
            Whether all of it is done.
        """
        done, end = threading.Event(), time.monotonic() + seconds
        self._actions.put(done.set)
        while not done.wait(max(0.0, min(POLL, end - time.monotonic()))):
            if time.monotonic() >= end or (silence is not None and self.silence > silence):
                return done.is_set()
        return True

    def close(self) -> None:
        """End the thread after what was handed over; nothing may follow."""
        self._actions.put(None)

    def _run(self) -> None:
        while True:
            action = self._actions.get()
            if action is None:
                return
            self._is_running = True
            self.beat()
            action()
            del action  # and what it holds, instead of keeping it until the next one comes
            self.beat()
            self._is_running = False
