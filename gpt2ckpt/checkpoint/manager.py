"""The interface to the trainer: saves that never end a run, and the record of what they cost."""

import contextlib
import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gpt2ckpt.checkpoint import format
from gpt2ckpt.checkpoint.archive_folders import all_folders
from gpt2ckpt.checkpoint.best import Best, BestModel, best_of
from gpt2ckpt.checkpoint.emergency_reserve import Reservation
from gpt2ckpt.checkpoint.event_sink import NO_EVENTS, EventSink
from gpt2ckpt.checkpoint.guard import Guard
from gpt2ckpt.checkpoint.newest_valid import Found, newest_regular
from gpt2ckpt.checkpoint.repair import quarantine
from gpt2ckpt.checkpoint.retention import Retention, SaveRequest, copies, replaced_names
from gpt2ckpt.checkpoint.save_report import Saved, SaveReport, hang, reason_of
from gpt2ckpt.checkpoint.scrub import Scrub
from gpt2ckpt.checkpoint.snapshot import Staging, on_host
from gpt2ckpt.checkpoint.state import CheckpointMeta
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.checkpoint.writer import HANG_SECONDS, Writer
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.files import durable
from gpt2ckpt.files.disk_usage import measure_free
from gpt2ckpt.units import human_bytes

log = logging.getLogger(__name__)
PATIENCE = 5.0  # seconds after which the end of a run logs that it waits for a save


@dataclass(frozen=True)
class SavingOptions:
    """How states are saved.

    Attributes:
        in_background: Whether to copy the state into memory and write it in a thread, so that the
            training loop need not wait for the disk.
        hang_seconds: Seconds without progress after which nothing waits for a save any longer.
        scrub_every: Saves between two verifications of all files; 0 for never.
        scrub_mb_per_s: The highest read speed of a verification.
        saves_best: Whether the run saves best models.
    """

    in_background: bool = False
    hang_seconds: float = HANG_SECONDS
    scrub_every: int = 0
    scrub_mb_per_s: float = 50.0
    saves_best: bool = True


@dataclass(frozen=True)
class ManagedRun:
    """The run whose states are saved.

    Attributes:
        id: Its id, if known.
        state: The state that it was resumed from, or its metadata; None for a new run or a fork.
        check_owner: Raises OSError if the folder now belongs to a different run.
        events: Records an event for each save, each damaged file and a nearly full disk.
        on_saved: Called in the writer thread with each file that has become durable.
    """

    id: str | None = None
    state: CheckpointMeta | None = None
    check_owner: Callable[[], None] = lambda: None
    events: EventSink = NO_EVENTS
    on_saved: Callable[[Path], None] = lambda path: None


class CheckpointManager:
    """Saves the states of one run into one folder.

    Life cycle: the constructor deletes temporary files of dead processes and starts to verify the
    files in the folder. `reserve` reserves space for an emergency save. `save` is called at step
    boundaries, and `roll_back_to` after an anomaly. `close` waits for the last save. The training
    thread calls all methods; the writer thread writes, reads and deletes the files.

    Guarantees:

    - A save that fails is logged as SAVE FAILED and raises no exception. All older files stay.
    - Saves are written one at a time and in order, and none is dropped: a second save waits until
      the first is written. If a disk makes no progress for `hang_seconds`, nothing waits for it any
      longer, and saves that are requested until it responds fail.
    - An emergency save is durable when `save` returns. Other saves are durable when they are logged
      as saved; with `in_background`, the training loop waits only until the state is copied.
    - No damaged file replaces a valid file: the files that a save renames are verified first.
    - The file that the process was resumed from is never deleted.

    Args:
        folder: checkpoints/; created if it does not exist.
        retention: How many files are kept.
        resumed_from: The verified file that the run was resumed or forked from.
        options: How states are saved.
        run: The run whose states are saved.

    Attributes:
        newest: The newest durable file, initially `resumed_from`.
        failed_step: The step of the newest save, if that save failed.
    """

    def __init__(
        self,
        folder: Path,
        retention: Retention,
        resumed_from: Path | None,
        *,
        options: SavingOptions = SavingOptions(),
        run: ManagedRun = ManagedRun(),
    ) -> None:
        self.newest = self._resumed_from = resumed_from
        self.failed_step: int | None = None
        self._retention, self._run, self._scrub_every = retention, run, options.scrub_every
        in_folder = resumed_from is not None and resumed_from.resolve().parent == folder.resolve()
        self._pinned = frozenset({resumed_from.name} if resumed_from and in_folder else ())
        self._scrub = Scrub(folder, options.scrub_mb_per_s, run.events)
        self._writer = Writer(options.hang_seconds, self._report_hang, self._scrub.run)
        self._scrub.watch = self._writer.beat
        self._store = Store(folder, self._writer.beat)
        self._guard = Guard(folder, run.id, resumed_from, self._writer.beat, run.events)
        self._reservation = Reservation(folder)
        self._report = SaveReport(folder, retention, run.events)
        self._staging = Staging() if options.in_background else None
        self._seconds_per_copy: float | None = None
        self._writing: SaveRequest | None = None  # the save that was started last
        self._rollback: tuple[Path, int] | None = None  # file and step, until it is archived
        self._best = BestModel(folder, self._guard, is_saved=options.saves_best)
        self._known = None if run.state is None else run.state.without_tensors()
        self._has_looked = False
        self._coming_best: Best | None = None  # of the save that is being written
        self._prepare_folder()
        if options.scrub_every:
            self._scrub.request()
        self._writer.start(self._look_at_best)

    def _prepare_folder(self) -> None:
        folder = self._store.folder
        durable.make_directory(folder)
        for place in all_folders(folder):
            for path in durable.clean_temporaries(place, of_all_hosts=True):
                log.info("removed the temporary file %s of a process that has ended", path.name)
        self._reservation.release()  # left by a dead process: only this process holds the run
        if not durable.sync_directory(folder):
            log.warning(
                "%s is on a file system that cannot sync a folder: a save survives killed "
                "processes, but perhaps not a power loss",
                folder,
            )

    def reserve(self, size: int) -> None:
        """Keep space for one emergency save of about `size` bytes, until `close`."""
        self._reservation.keep(size)

    # ---------------------------------------------------------------- one save

    def save(
        self, state: dict[str, Any], request: SaveRequest, first: Callable[[], None] = lambda: None
    ) -> Saved | None:
        """Save a state under the roles of `request`.

        Args:
            state: The stored form (CheckpointState.to_dict), with the live tensors of the training.
            request: The step and the roles.
            first: Called in the writer thread before the state is written, for data that must be
                durable earlier.

        Returns:
            The save if it is already durable, which an emergency save that succeeds always is.
        """
        start = time.perf_counter()
        if not self._writer.wait():
            self._fail(request.step, hang(self._writer.silence))
            return None
        if request.best:
            self._coming_best = best_of(CheckpointMeta.from_dict(state))
        snapshot = None if request.emergency else self._copy(state)
        if snapshot is not None:
            waited = time.perf_counter() - start
            self._writer.start(lambda: self._write(snapshot, request, first, start, waited))
            return None
        # In the writer thread too, so that the training thread still handles signals.
        results: list[Saved | None] = []
        state = on_host(state)
        self._writer.start(lambda: results.append(self._write(state, request, first, start)))
        if not self._writer.wait():
            self._fail(request.step, hang(self._writer.silence))
            return None
        return results[0]

    def _copy(self, state: dict[str, Any]) -> dict[str, Any] | None:
        """Return a copy of the state; None without a background save, or if memory is short."""
        if self._staging is None:
            return None
        try:
            return self._staging.take(state)
        except (MemoryError, RuntimeError) as error:  # PyTorch raises RuntimeError
            log.warning("no memory for a copy of the state, training waits for saves: %s", error)
            self._staging = None
            return None

    def _write(
        self,
        state: dict[str, Any],
        request: SaveRequest,
        first: Callable[[], None],
        start: float,
        waited: float | None = None,
    ) -> Saved | None:
        """Write a state, in the writer thread. `waited` is None if the caller still waits."""
        self._writing = request
        try:
            self._run.check_owner()
            first()
            self._run.events.sync()
            try:
                self._archive_later()
            except OSError:
                if not request.emergency:
                    raise
            encoded = format.encode(state)
            if not request.emergency:
                self._check_space(copies(request) * encoded.size)
            for name in replaced_names(request):
                self._guard.ensure_valid(self._store.folder / name)
            spare = self._reservation.surrender() if request.emergency else None
            path = self._store.put(encoded, request, self._retention, self._pinned, spare)
        except (OSError, CheckpointError) as error:
            self._fail(request.step, error)
            return None
        finally:
            if request.best:  # a save can fail before or after best_model.pt is replaced
                self._best.read()
                self._coming_best = None
        seconds = time.perf_counter() - start
        saved = Saved(path, encoded.size, seconds, seconds if waited is None else waited)
        self._report.record(saved, request, CheckpointMeta.from_dict(state).reason)
        self._guard.trust(path)
        self.newest, self.failed_step = path, None
        self._seconds_per_copy = seconds / copies(request)
        self._report.log(saved, request.step)
        self._run.on_saved(path)
        self._reservation.renew(saved.size)
        if self._scrub_every and self._report.saves % self._scrub_every == 0:
            self._scrub.request()
        return saved

    def _check_space(self, needed: int) -> None:
        free = measure_free(self._store.folder)
        if free < needed:
            kept = self._reservation.held
            more = f" ({human_bytes(kept)} more are kept for an emergency save)" if kept else ""
            raise OSError(
                errno.ENOSPC,
                f"it needs {human_bytes(needed)} and {human_bytes(free)} are free{more}",
            )

    def _fail(self, step: int, error: Exception) -> None:
        self._report.failed(step, error)
        self.failed_step = step

    # ---------------------------------------------------------------- what was saved

    @property
    def is_writing(self) -> bool:
        """Return whether a save is in progress."""
        return self._writing is not None and self._writer.is_busy

    def seconds_to_save(self) -> float | None:
        """Return the seconds of an emergency save, estimated from the last save; None before any.

        This includes the wait for a save that is being written, as if that had just started.
        """
        if self._seconds_per_copy is None:
            return None
        waiting = copies(self._writing) if self._writing and self._writer.is_busy else 0
        return (1 + waiting) * self._seconds_per_copy

    def best(self, *, settled: bool = False) -> Best | None:
        """Return the best model of the run by its file; None without such a file.

        A best model that is being written counts as saved. With `settled`, this call waits until
        it is written.
        """
        if not self._has_looked or (settled and self._coming_best is not None):
            self._writer.wait()
        if settled or self._coming_best is None:
            return self._best.current
        return self._coming_best

    def _look_at_best(self) -> None:
        self._best.look(self._known, self._run.check_owner)
        self._has_looked = True

    # ---------------------------------------------------------------- rollback

    def last_regular(self) -> Found | None:
        """Return the newest valid regular save, after waiting for a save that is being written.

        Without one, return the state that the process was resumed or forked from; None if there is
        none.
        """
        self.wait()
        return newest_regular(self._store.folder, self._resumed_from)

    def roll_back_to(self, found: Found) -> None:
        """Archive all states after `found`, which becomes the latest state.

        A failure is logged, and the next save first tries again. Raises OSError if the folder now
        belongs to a different run.
        """
        self._run.check_owner()
        self._rollback = found.path, found.state.step
        self._known = found.state.without_tensors()
        if self._writer.wait():
            self._writer.start(lambda: self._roll_back(dict(found.skipped)))
            self._writer.wait()

    def _roll_back(self, skipped: dict[Path, str]) -> None:
        assert self._rollback is not None
        folder, step = self._store.folder, self._rollback[1]
        when, run = datetime.now(), self._run
        try:
            run.events.sync()  # the rollback is recorded before files are moved
            for message in quarantine(folder, skipped, when, run.id, run.events):
                log.warning("%s", message)
            self._archive_later()
        except (OSError, CheckpointError) as error:
            log.warning(
                "checkpoints after step %d cannot be archived now (%s): the next save tries again",
                step,
                reason_of(error),
            )
            if self._best.current is not None and self._best.current.step > step:
                self._best.current = None  # abandoned, though its file is still in the folder

    def _archive_later(self) -> None:
        """Archive the later states after a rollback, unless that is done."""
        if self._rollback is None:
            return
        archive = self._store.roll_back_to(*self._rollback, datetime.now())
        self._rollback = None
        if archive:
            log.info("later checkpoints are archived in %s", archive)
        self._look_at_best()

    # ---------------------------------------------------------------- the end

    def wait(self) -> bool:
        """Wait for the save that is being written, and return whether the newest save succeeded."""
        return self._wait_patiently() and self.failed_step is None

    def close(self) -> None:
        """Wait for the last save, release the reserved space, and end the threads.

        A disk that hangs is not waited for: in that case `failed_step` is the step of that save.
        """
        try:
            has_ended = self._wait_patiently()
        finally:
            is_closed = self._writer.close()
            self._scrub.close()
            self._guard.close()
            self._report.close()
        if has_ended and is_closed:
            with contextlib.suppress(OSError):
                self._run.check_owner()
                self._reservation.release()

    def _wait_patiently(self) -> bool:
        if self._writer.wait(PATIENCE):
            return True
        log.info("waiting until the last save is on disk; a second signal stops at once")
        if self._writer.wait():
            return True
        step = self._writing.step if self._writing is not None else None
        self._report.stopped_waiting(step, hang(self._writer.silence))
        if step is not None:
            self.failed_step = max(self.failed_step or 0, step)
        return False

    def _report_hang(self, seconds: float) -> None:
        log.warning(
            "%s hangs: the disk under %s has taken nothing for %.0f s. Training continues; "
            "see dmesg for the state of the disk.",
            f"the save of step {self._writing.step}"
            if self._writing
            else "the check of best_model.pt",
            self._store.folder,
            seconds,
        )
