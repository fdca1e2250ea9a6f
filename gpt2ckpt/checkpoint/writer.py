"""One save at a time in a background thread, while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """Runs one task in the background. A second one waits for it: no save is ever dropped.

    Saves that come faster than the disk takes them therefore slow the training down instead of
    going missing; the loop says how long it waited.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-writer")
        self._running: Future[object] | None = None

    def start(self, task: Callable[[], object]) -> None:
        """Run `task` in the background. The one before must have ended: call `wait` first."""
        assert self._running is None, "a save is still being written"
        self._running = self._pool.submit(task)

    def wait(self) -> None:
        """Wait until the running task has ended, and raise what it raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()
