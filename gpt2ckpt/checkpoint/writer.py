"""The background thread that saves, one task at a time, and detects a disk that hangs."""

import threading
import time
from collections.abc import Callable
from concurrent import futures

from gpt2ckpt.worker import Worker, resolve

HANG_SECONDS = 300.0
POLL = 1.0  # seconds between two checks of a running task, at most


class Writer:
    """Runs tasks one after another in a daemon thread.

    A second task waits for the first: no save is dropped because the disk is slow. A task without
    progress (`beat`) for `hang_seconds` hangs, and nothing waits for it any longer, neither the
    training loop nor the end of the process. Its thread cannot be ended, because the kernel holds
    it.

    Args:
        hang_seconds: Seconds without progress after which a task hangs.
        on_hang: Called once for a task that hangs, with the seconds without progress.
        idle: Called after each task, with a function that returns True once the next task is
            queued; `idle` must then return.
    """

    def __init__(
        self,
        hang_seconds: float = HANG_SECONDS,
        on_hang: Callable[[float], None] = lambda seconds: None,
        idle: Callable[[Callable[[], bool]], None] = lambda is_wanted: None,
    ) -> None:
        self._hang_seconds, self._on_hang, self._idle = hang_seconds, on_hang, idle
        self._running: futures.Future[object] | None = None
        self._closed = threading.Event()
        self._worker = Worker("checkpoint-writer", limit=1)
        self._watcher = threading.Thread(target=self._watch, name="checkpoint-watch", daemon=True)
        self._watcher.start()

    def start(self, task: Callable[[], object]) -> None:
        """Run `task` in the background. The task before must have ended: call `wait` first."""
        assert self._running is None, "a save is still being written"
        self._worker.beat()
        answer: futures.Future[object] = futures.Future()
        self._running = answer
        self._worker.submit(lambda: self._run(task, answer))

    def beat(self, count: int = 0) -> None:
        """Record that the running task makes progress; `count` is ignored."""
        self._worker.beat()

    @property
    def is_busy(self) -> bool:
        """Whether a task is running."""
        running = self._running
        return running is not None and not running.done()

    @property
    def silence(self) -> float:
        """Seconds since the running task last made progress."""
        return self._worker.silence

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the running task, and raise its exception.

        Returns:
            False if the task hangs or does not end within `timeout` seconds.
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
        """Wait for the last task and end the threads. Return False if the task hangs."""
        try:
            has_ended = self.wait()
        finally:
            self._closed.set()
            self._worker.close()
        if has_ended:
            self._worker.join(self._hang_seconds)
            self._watcher.join(self._hang_seconds)
        return has_ended

    def _run(self, task: Callable[[], object], answer: "futures.Future[object]") -> None:
        resolve(answer, task)
        del task  # releases the copy of a state that it holds
        self._idle(lambda: self._worker.backlog > 0)

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
