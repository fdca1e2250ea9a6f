"""The background thread that saves, one task at a time, and detects a disk that hangs."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent import futures

HANG_SECONDS = 300.0
POLL = 1.0  # seconds between two looks at a running task, at most


class Writer:
    """Runs tasks one after another in a daemon thread.

    A second task waits for the first: no save is dropped because the disk is slow. A task without
    progress (`beat`) for `hang_seconds` hangs and is not waited for any longer. Its thread cannot
    be ended, because the kernel holds it, but neither the training nor the end of the process waits
    for it.

    Args:
        hang_seconds: seconds without progress after which a task hangs.
        on_hang: called once for a task that hangs, with the seconds without progress.
        idle: called whenever no task is queued, with a function that returns True once a task is
            queued; `idle` must then return.
    """

    def __init__(
        self,
        hang_seconds: float = HANG_SECONDS,
        on_hang: Callable[[float], None] = lambda seconds: None,
        idle: Callable[[Callable[[], bool]], None] = lambda is_wanted: None,
    ) -> None:
        self._hang_seconds, self._on_hang, self._idle = hang_seconds, on_hang, idle
        self._tasks: queue.SimpleQueue[tuple[Callable[[], object], futures.Future[object]] | None]
        self._tasks = queue.SimpleQueue()
        self._running: futures.Future[object] | None = None
        self._last_beat = time.monotonic()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, task: Callable[[], object]) -> None:
        """Run `task` in the background. The task before must have ended: call `wait` first."""
        assert self._running is None, "a save is still being written"
        self._running = futures.Future()
        self.beat()
        self._tasks.put((task, self._running))
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._work, name="checkpoint-writer", daemon=True),
                threading.Thread(target=self._watch, name="checkpoint-watch", daemon=True),
            ]
            for thread in self._threads:
                thread.start()

    def beat(self, count: int = 0) -> None:
        """Record that the running task makes progress; `count` is ignored."""
        self._last_beat = time.monotonic()

    @property
    def is_busy(self) -> bool:
        """Whether a task is running."""
        running = self._running
        return running is not None and not running.done()

    @property
    def silence(self) -> float:
        """Seconds since the running task last made progress."""
        return time.monotonic() - self._last_beat

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the running task, and raise its exception.

        Returns False if the task hangs or does not end within `timeout` seconds.
        """
        running, end = self._running, None if timeout is None else time.monotonic() + timeout
        while running is not None and not running.done():
            left = POLL if end is None else min(POLL, end - time.monotonic())
            if left <= 0 or self.silence > self._hang_seconds:
                return False
            futures.wait([running], min(left, self._hang_seconds / 4))
        self._running = None
        if running is not None:
            running.result()
        return True

    def close(self) -> bool:
        """Wait for the last task and end the threads. Returns False if the task hangs."""
        try:
            has_ended = self.wait()
        finally:
            self._closed.set()
            self._tasks.put(None)
        if has_ended:
            for thread in self._threads:
                thread.join(timeout=self._hang_seconds)
        return has_ended

    def _work(self) -> None:
        while (job := self._tasks.get()) is not None:
            task, future = job
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)
            self._idle(lambda: not self._tasks.empty())

    def _watch(self) -> None:
        """Call `on_hang` once for each task that hangs."""
        reported: futures.Future[object] | None = None
        while not self._closed.wait(min(POLL, self._hang_seconds / 4)):
            running = self._running
            if running is None or running.done() or running is reported:
                continue
            if self.silence > self._hang_seconds:
                reported = running
                self._on_hang(self.silence)
