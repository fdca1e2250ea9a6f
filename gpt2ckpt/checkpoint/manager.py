"""What the trainer talks to: saves that never end a training, and a tally of what they cost."""

import contextlib
import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from gpt2ckpt.checkpoint import disk_report, format, names, policy
from gpt2ckpt.checkpoint.archive_folders import all_folders
from gpt2ckpt.checkpoint.best import Best, best_of
from gpt2ckpt.checkpoint.event_sink import NO_EVENTS, EventSink
from gpt2ckpt.checkpoint.guard import Guard
from gpt2ckpt.checkpoint.policy import (
    COPIES,
    Retention,
    SaveRequest,
    copies,
    most_bytes,
    own_names,
)
from gpt2ckpt.checkpoint.repair import quarantine
from gpt2ckpt.checkpoint.reservation import Reservation
from gpt2ckpt.checkpoint.scrub import Scrub
from gpt2ckpt.checkpoint.snapshot import Staging, on_host
from gpt2ckpt.checkpoint.state import CheckpointMeta
from gpt2ckpt.checkpoint.store import Found, Store
from gpt2ckpt.checkpoint.writer import HANG_SECONDS, Writer
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.files import durable
from gpt2ckpt.files.disk_usage import measure_free
from gpt2ckpt.units import human_bytes

log = logging.getLogger(__name__)
REPORT_EVERY = 10  # saves
PATIENCE = 5.0  # seconds that an end waits for a save without a word


@dataclass(frozen=True)
class Saved:
    """A durable, verified save: its file and bytes, the seconds until it was durable, and those
    that the training waited."""

    path: Path
    size: int
    seconds: float
    waited: float


class CheckpointManager:
    """Saves states into one folder under a retention policy.

    With `in_background` the caller waits for a copy in memory only; one save is written at a time,
    and a save that comes sooner waits for it, so that none is ever dropped. Only a disk that gives
    no sign of life for `hang_seconds` is not waited for. Every `scrub_every` saves (0: never), and
    at the start, all files are checked between saves, at `scrub_mb_per_s` at most. Before anything
    is changed, `check_owner` raises OSError if the folder is another run's by now. `run` is the id
    of the run, and `known` the state that it was resumed from, or its metadata: with `saves_best`,
    a best_model.pt that is gone is made again where a file of that step is left.
    """

    def __init__(
        self,
        folder: Path,
        retention: Retention,
        resumed_from: Path | None,
        *,
        in_background: bool = False,
        hang_seconds: float = HANG_SECONDS,
        scrub_every: int = 0,
        scrub_mb_per_s: float = 50.0,
        check_owner: Callable[[], None] = lambda: None,
        saves_best: bool = True,
        run: str | None = None,
        known: CheckpointMeta | None = None,
        events: EventSink = NO_EVENTS,
    ) -> None:
        self._check_owner, self._events = check_owner, events
        self._scrub = Scrub(folder, scrub_mb_per_s, events)
        self._writer = Writer(hang_seconds, self._report_hang, self._scrub.run)
        self._scrub.watch = self._writer.beat
        self._scrub_every = scrub_every
        self._store = Store(folder, self._writer.beat)
        self._space_report = disk_report.DiskReport(folder, events)
        self._reserve = Reservation(folder)
        self._reserve_is_wanted = False
        self._why_no_reserve: str | None = None
        self._retention = retention
        in_folder = resumed_from is not None and resumed_from.resolve().parent == folder.resolve()
        self._pinned = frozenset({resumed_from.name} if resumed_from and in_folder else ())
        self._resumed_from = self.newest = resumed_from  # newest: the last that is durable
        self._seconds_a_copy: float | None = None
        self._staging = Staging() if in_background else None
        self._begun = time.monotonic()
        self._writing: SaveRequest | None = None
        self._back_to: tuple[Path, int] | None = None  # a rollback that is not archived yet
        self.saves = 0
        self.failed_step: int | None = None  # of the newest save, if it failed
        self._guard = Guard(folder, run, resumed_from, self._writer.beat, events)
        self._run, self._saves_best = run, saves_best
        self._known_best = _known_best(known)
        self._best: Best | None = None  # what best_model.pt holds
        self._coming_best: Best | None = None  # of the save that is being written
        self._has_looked = False
        durable.make_directory(folder)
        for place in all_folders(folder):
            for path in durable.clean_temporaries(place, of_all_hosts=True):
                log.info("removed %s, left by a process that died", path.name)
        self._reserve.release()  # a dead process's: this one alone holds the run
        if not durable.sync_directory(folder):
            log.warning(
                "%s is on a file system that cannot sync a folder: a save survives killed "
                "processes, and perhaps no power loss",
                folder,
            )
        if scrub_every:
            self._scrub.request()
        self._writer.start(self._look_at_best)

    def reserve(self, size: int) -> None:
        """Keep space for one emergency save of about `size` bytes, until `close`."""
        self._reserve_is_wanted = True
        self._hold(size)

    def save(
        self, state: dict[str, Any], request: SaveRequest, first: Callable[[], None] = lambda: None
    ) -> Saved | None:
        """Save `state`. A save that fails is a warning, and every older file is kept.

        `first` is called in the thread that saves: what must be durable before the state is.
        Returns what is durable by now: an emergency save always, others in the background later.
        """
        start = time.perf_counter()
        if not self._writer.wait():
            return self._fail(request, _hang(self._writer.silence))
        self._coming_best = best_of(CheckpointMeta.from_dict(state)) if request.best else None
        snapshot = None
        if self._staging is not None and not request.emergency:
            try:
                snapshot = self._staging.take(state)
            except (MemoryError, RuntimeError) as error:  # PyTorch's word for no memory
                log.warning("no memory for a copy of the state, the training waits: %s", error)
                self._staging = None
        if snapshot is None:
            return self._write_now(on_host(state), request, first, start)
        waited = time.perf_counter() - start
        self._writer.start(lambda: self._write(snapshot, request, first, start, waited))
        return None

    def seconds_to_save(self) -> float | None:
        """How long an emergency save may take at the pace of the last save; None before any.

        One that is being written is waited for: it is taken to have just begun.
        """
        if self._seconds_a_copy is None:
            return None
        waiting = copies(self._writing) if self._writing and self._writer.is_busy else 0
        return (1 + waiting) * self._seconds_a_copy

    @property
    def is_writing(self) -> bool:
        """Whether a save is under way."""
        return self._writing is not None and self._writer.is_busy

    def last_regular(self) -> Found | None:
        """The newest valid regular save, the one that is being written included; else the state
        that this process was resumed or forked from; None if it began anew."""
        self.wait()
        return self._store.last_regular(self._resumed_from)

    def roll_back_to(self, found: Found) -> None:
        """Archive all that was saved after `found`, which is now the latest.

        Where that fails, it is a warning, and the next save tries it first. Raises OSError if the
        folder is another run's by now.
        """
        self._check_owner()
        self._back_to = found.path, found.state.step
        self._known_best = _known_best(found.state)
        if self._writer.wait():
            self._writer.start(lambda: self._roll_back(dict(found.skipped)))
            self._writer.wait()

    def _roll_back(self, skipped: dict[Path, str]) -> None:
        assert self._back_to is not None
        folder, step = self._store.folder, self._back_to[1]
        try:
            self._events.sync()  # the rollback is recorded before files are moved
            when, run, events = datetime.now(), self._run, self._events
            for sentence in quarantine(folder, skipped, when, run, events):
                log.warning("%s", sentence)
            self._archive_later()
        except (OSError, CheckpointError) as error:
            log.warning(
                "checkpoints after step %d cannot be archived now (%s): the next save tries again",
                step,
                _reason(error),
            )
            if self._best is not None and self._best.step > step:
                self._best = None  # abandoned, though it is still there

    def _archive_later(self) -> None:
        """Archive what a rollback abandoned, if that is still to be done."""
        if self._back_to is None:
            return
        aside = self._store.roll_back_to(*self._back_to, datetime.now())
        self._back_to = None
        if aside:
            log.info("later checkpoints are archived in %s", aside)
        self._look_at_best()

    def best(self, *, settled: bool = False) -> Best | None:
        """Return the best model of the run by its file; None if there is none.

        A save of the best that is being written counts as done; with `settled` it is waited for.
        """
        if not self._has_looked or (settled and self._coming_best is not None):
            self._writer.wait()
        return self._best if settled or self._coming_best is None else self._coming_best

    def wait(self) -> bool:
        """Wait for the save that is being written. Returns whether the newest save succeeded."""
        return self._wait_patiently() and self.failed_step is None

    def close(self) -> None:
        """Wait for the last save, give the reserved space back, and end.

        A disk that hangs is not waited for: the step of that save is then in `failed_step`.
        """
        try:
            has_ended = self._wait_patiently()
        finally:
            closed = self._writer.close()
            self._guard.close()
            self._space_report.wait()
        if has_ended and closed:
            with contextlib.suppress(OSError):
                self._check_owner()
                self._reserve.release()

    def _wait_patiently(self) -> bool:
        if self._writer.wait(PATIENCE):
            return True
        log.info("waiting until the last save is on disk; the same signal again stops at once")
        if self._writer.wait():
            return True
        error = _reason(_hang(self._writer.silence))
        log.error("the last save is given up: %s", error)
        if self._writing is not None:
            self._events.write("checkpoint_failed", self._writing.step, error=error)
            self.failed_step = max(self.failed_step or 0, self._writing.step)
        return False

    def _write_now(
        self, state: dict[str, Any], request: SaveRequest, first: Callable[[], None], start: float
    ) -> Saved | None:
        """In the writer's thread as well: then a signal still gets through while the disk works."""
        result: list[Saved | None] = []
        self._writer.start(lambda: result.append(self._write(state, request, first, start)))
        if not self._writer.wait():
            return self._fail(request, _hang(self._writer.silence))
        return result[0]

    def _write(
        self,
        state: dict[str, Any],
        request: SaveRequest,
        first: Callable[[], None],
        start: float,
        waited: float | None = None,
    ) -> Saved | None:
        self._writing = request
        try:
            self._check_owner()
            first()
            self._events.sync()
            try:
                self._archive_later()
            except OSError:
                if not request.emergency:
                    raise
            encoded = format.encode(state)
            if not request.emergency:
                self._check_space(copies(request) * encoded.size)
            for name in policy.replaced_names(request):
                self._guard.ensure_valid(self._store.folder / name)
            spare = self._reserve.surrender() if request.emergency else None
            path = self._store.put(encoded, request, self._retention, self._pinned, spare)
        except (OSError, CheckpointError) as error:
            return self._fail(request, error)
        finally:
            if request.best:  # a save can fail before or after it has come to that name
                self._best, self._coming_best = self._guard.best(), None
        seconds = time.perf_counter() - start
        saved = Saved(path, encoded.size, seconds, seconds if waited is None else waited)
        self._record(saved, request, str(state.get("reason", "")))
        self._guard.trust(path)
        self.failed_step = None
        self.newest, self._seconds_a_copy = path, seconds / copies(request)
        self.saves += 1
        log.info(
            "saved %s (step %d, %s in %.2f s, training waited %.2f s)",
            path.name,
            request.step,
            human_bytes(saved.size),
            saved.seconds,
            saved.waited,
        )
        self._hold(encoded.size)
        if self.saves % REPORT_EVERY == 0:
            pace = (time.monotonic() - self._begun) / self.saves
            self._space_report.start(
                step=request.step,
                bytes_per_save=COPIES * encoded.size,
                seconds_per_save=pace,
                most_bytes=most_bytes(self._retention, encoded.size),
            )
        if self._scrub_every and self.saves % self._scrub_every == 0:
            self._scrub.request()
        return saved

    def _record(self, saved: Saved, request: SaveRequest, reason: str) -> None:
        """Record a save durably, before anything relies on it."""
        roles = [names.role_of(name) for name in own_names(request)]
        self._events.write(
            "checkpoint_saved",
            request.step,
            file=saved.path.name,
            roles=[names.Role.LATEST, *roles],
            reason=reason,
            bytes=saved.size,
            seconds=saved.seconds,
            stall_seconds=saved.waited,
        )
        self._events.sync()

    def _fail(self, request: SaveRequest, error: Exception) -> Saved | None:
        self._events.write("checkpoint_failed", request.step, error=_reason(error))
        log.warning(
            "SAVE FAILED at step %d: %s. Every older checkpoint is kept, training goes on, and the "
            "next save tries again. %s.",
            request.step,
            _reason(error),
            disk_report.advice_for(error, self._store.folder),
        )
        self.failed_step = request.step
        return None

    def _look_at_best(self) -> None:
        """Decide by its file what the best model is. Never raises."""
        with contextlib.suppress(OSError):
            self._check_owner()
            self._guard.ensure_valid(self._store.folder / names.BEST)
            if self._saves_best and self._known_best is not None:
                self._guard.restore_best(*self._known_best)
        self._best, self._has_looked = self._guard.best(), True

    def _hold(self, size: int) -> None:
        """Take the reserve, or say once why there is none."""
        if not self._reserve_is_wanted:
            return
        reason = self._reserve.hold(size)
        if reason and reason != self._why_no_reserve:
            log.warning(
                "no space is kept for an emergency save of %s (%s): on a full disk it would fail",
                human_bytes(size),
                reason,
            )
        self._why_no_reserve = reason

    def _report_hang(self, seconds: float) -> None:
        log.warning(
            "%s hangs: the disk under %s has taken nothing for %.0f s. Training "
            "goes on; see dmesg for what is wrong with the disk.",
            f"the save of step {self._writing.step}" if self._writing else "the check of the best",
            self._store.folder,
            seconds,
        )

    def _check_space(self, needed: int) -> None:
        free = measure_free(self._store.folder)
        if free < needed:
            kept = self._reserve.held
            more = f" ({human_bytes(kept)} more are kept for an emergency save)" if kept else ""
            raise OSError(
                errno.ENOSPC,
                f"it needs {human_bytes(needed)} and {human_bytes(free)} are free{more}",
            )


def _known_best(meta: CheckpointMeta | None) -> tuple[int, str] | None:
    """Return the step and the run of the best model that a state records; None without one."""
    return None if meta is None or meta.best_step is None else (meta.best_step, meta.run.id)


def _hang(seconds: float) -> OSError:
    return OSError(errno.ETIMEDOUT, f"a save hangs, the disk has taken nothing for {seconds:.0f} s")


def _reason(error: Exception) -> str:
    """An error without its number, with the file that it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)
