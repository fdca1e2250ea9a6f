"""Decide how a process starts: a new run, a resume, or a fork."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from gpt2ckpt.checkpoint.newest_valid import Found
from gpt2ckpt.checkpoint.state import CheckpointState, ParentRun, RunIdentity
from gpt2ckpt.config.earlier import completed
from gpt2ckpt.config.replay import Change, Values, freeze, replay, still_meant, task_overrides
from gpt2ckpt.errors import CheckpointError, ConfigError, InputError, LockedError
from gpt2ckpt.runs import history, resume
from gpt2ckpt.runs.lock import RunLock, refuse_if_locked, unwritable
from gpt2ckpt.runs.plugins import changed_plugins, require_plugins
from gpt2ckpt.runs.resume import Place, Scope

Compose = Callable[[list[str]], Values]  # composes a config from overrides


@dataclass(frozen=True)
class Start:
    """How a process starts: what it trains, from which state and in which directory.

    The decision writes nothing.

    Attributes:
        frozen: The config to train with.
        overrides: The overrides of the run, as the checkpoints record them.
        directory: The directory of the resumed run; None for a new run or a fork.
        found: The checkpoint to start from; None for a new run.
        changes: The keys that a resume changes in the saved config.
        restarts_run: Whether a run without a checkpoint restarts in its own directory.
        lock: The lock of `directory`, taken before the checkpoint was read, or of the new directory
            of a sweep's job; None if there is no directory yet, and in a dry run.
        unwritable: The reason why `directory` cannot be locked.
        skipped_runs: Newer runs without a checkpoint, with the reason for each.
        given: Those of `overrides` that this command sets.
        fork_requested: Whether the user requested a fork, which may train on different data.
    """

    frozen: Values
    overrides: list[str]
    directory: Path | None = None
    found: Found | None = None
    changes: list[Change] = field(default_factory=list)
    restarts_run: bool = False
    lock: RunLock | None = None
    unwritable: InputError | None = None
    skipped_runs: list[tuple[Path, str]] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    fork_requested: bool = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Release the lock at the end of the `with` statement, if it is still held."""
        try:
            yield
        finally:
            if self.lock is not None:
                self.lock.undo()

    @property
    def state(self) -> CheckpointState | None:
        """The saved state to start from; None for a new run."""
        return self.found.state if self.found else None

    @cached_property
    def identity(self) -> RunIdentity:
        """The identity of the resumed run, or a new one."""
        name = str(self.frozen["name"])
        if self.found is None:
            return RunIdentity(secrets.token_hex(4), name)
        run = self.found.state.run
        if self.directory is not None:
            return replace(run, name=name)
        parent = ParentRun(run.id, self.found.state.step, str(self.found.path))
        return RunIdentity(secrets.token_hex(4), name, parent)

    @property
    def step(self) -> int:
        """Return the step of the saved state; 0 for a new run."""
        return self.found.state.step if self.found else 0

    @property
    def skipped_files(self) -> list[tuple[Path, str]]:
        """Return the files and runs that were skipped, each with the reason."""
        skipped = self.found.skipped if self.found else self.skipped_runs
        return [(path, reason.removeprefix(f"{path} ")) for path, reason in skipped]

    def skipped(self) -> list[str]:
        """Return a line for each file or run that was skipped because it is damaged or missing."""
        return [f"skipped {path}: {reason}" for path, reason in self.skipped_files]

    def notices(self) -> list[str]:
        """Return the lines to print: skipped files, the checkpoint to start from, changed keys."""
        lines = self.skipped()
        if self.found is None:
            return lines
        verb = "resuming" if self.directory else "forking"
        lines.append(f"{verb} from {self.found.path}, step {self.found.state.step}")
        lines += [f"{change}  ({change.effect})" for change in self.changes]
        kept = self.frozen.get("callback") or {}
        dropped = [name for name in self.found.state.callbacks or {} if name not in kept]
        return lines + [f"the saved state of callback {name!r} is dropped" for name in dropped]


def find_start(
    values: Values, overrides: list[str], scope: Scope, compose: Compose, *, locks: bool
) -> Start:
    """Decide how to start.

    Args:
        values: The composed config; a resume reads only `resume` and `fork` from it.
        overrides: The overrides of the command line.
        scope: Where a selector such as `latest` is searched.
        compose: Composes a config from overrides.
        locks: Whether to lock the directory of the resumed run before its checkpoint is read, so
            that no other process trains in it between this decision and the first step.
            `Start.held` releases the lock. A dry run does not lock, and writes nothing.

    Raises:
        CheckpointError: The checkpoint to resume does not exist.
        LockedError: Another process trains in the directory of that run.
        ConfigError: A resume cannot make a change that the overrides request.
    """
    if values["resume"] is None:
        if values["fork"]:
            raise ConfigError("fork=true needs a checkpoint to fork from: add +resume=PATH")
        new = task_overrides(overrides)
        return Start(freeze(values), new, given=new)
    what, fork = str(values["resume"]), bool(values["fork"])
    if fork:  # the name is that of the new run
        scope = replace(scope, name=None)
    place = resume.locate(what, scope)
    directory = scope.given if place is None else place.directory
    if directory is None or not directory.is_dir() or (place and (fork or not place.in_run)):
        return _decide(place, overrides, scope, compose, fork=fork)
    if not locks:
        refuse_if_locked(directory)
        return _decide(place, overrides, scope, compose, fork=fork)
    lock, reason = _try_lock(directory)
    try:
        scope = replace(scope, given=directory)
        again = resume.locate(what, scope)  # another process may have saved since
        if place is not None and again is None:
            raise CheckpointError(
                f"the checkpoints in {directory} were deleted while this process was starting: "
                "restore them, or pass a different run directory with +resume=PATH"
            )
        if place is not None and again is not None:
            again = replace(again, skipped=place.skipped)
        start = _decide(again, overrides, scope, compose, fork=fork)
    except BaseException:
        if lock is not None:
            lock.undo()
        raise
    return replace(start, lock=lock, unwritable=reason)


def _decide(
    place: Place | None, overrides: list[str], scope: Scope, compose: Compose, *, fork: bool
) -> Start:
    """Return the start from the checkpoint in `place`, or a new run if `place` is None."""
    new, given = task_overrides(overrides), scope.given
    restarts_run = place is None and given is not None
    if place is None:
        place = _origin(given) if given else None
        if place is None:
            skipped = resume.skipped_runs(scope)
            frozen = freeze(compose(overrides))
            return Start(frozen, new, restarts_run=restarts_run, skipped_runs=skipped, given=new)
    fork_requested = fork or restarts_run
    fork = fork_requested or not place.in_run
    found = resume.read(place)
    if not fork:
        _refuse_foreign(found, place.directory)
    if not (found.state.has("config") and found.state.has("overrides")):
        raise resume.no_config(found.path)
    require_plugins(found.path, found.state)
    try:
        saved = completed(found.state.config)
        recorded = still_meant(saved, found.state.overrides, new, compose)
        frozen, changes = replay(saved, recorded, new, compose)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise resume.no_config(found.path) from error
    changes += changed_plugins(frozen, found.state)
    kept = [override for override in recorded if override not in new]  # the last one counts
    return Start(
        frozen=frozen,
        overrides=kept + new,
        directory=None if fork else place.directory,
        found=found,
        changes=changes,
        restarts_run=restarts_run,
        given=new,
        fork_requested=fork_requested,
    )


def _try_lock(directory: Path) -> tuple[RunLock | None, InputError | None]:
    """Return the lock of a run, or the reason why it cannot be locked.

    A finished run can be read without a lock. Raises LockedError if another process trains there.
    """
    try:
        return RunLock(directory), None
    except LockedError:
        raise
    except OSError as error:
        return None, unwritable(directory, error)
    except InputError as error:
        return None, error


def _origin(directory: Path) -> Place | None:
    """Return the checkpoint that the fork in `directory` started from, if the fork never saved.

    Raises CheckpointError if that file is missing: without it, a restart would be a different run.
    """
    origin = history.forked_from(directory)
    if origin is None:
        return None
    if not origin.is_file():
        raise CheckpointError(
            f"{directory} is a fork of {origin}, which is missing, and holds no checkpoint of its "
            "own: restore that file, or set a different hydra.run.dir to start a new run"
        )
    return resume.locate(str(origin), Scope(directory.parent))


def _refuse_foreign(found: Found, directory: Path) -> None:
    """Raise CheckpointError if `found` does not belong to the run in `directory`."""
    own, owner = history.run_id_in(directory), found.state.run.id
    if own and owner not in ("", own):
        raise CheckpointError(
            f"{found.path} belongs to run {owner}, and {directory} to run {own}: to start a new "
            "run from that file, add +fork=true"
        )
