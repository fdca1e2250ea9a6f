"""How a process starts: anew, as the continuation of a run, or as a fork of one."""

import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt2ckpt.checkpoint import interrupted_save
from gpt2ckpt.checkpoint.repair import quarantine
from gpt2ckpt.checkpoint.store import Found, Store, owner_of
from gpt2ckpt.config.compose import sets, spelled
from gpt2ckpt.config.earlier import completed
from gpt2ckpt.config.replay import Change, Values, freeze, replay, still_meant, task_overrides
from gpt2ckpt.errors import CheckpointError, ConfigError, InputError, LockedError
from gpt2ckpt.files import durable
from gpt2ckpt.runs import history, resume
from gpt2ckpt.runs.claim import Claim, claim, holds_checkpoints, holds_run, reclaim
from gpt2ckpt.runs.history import Point, RunIdentity
from gpt2ckpt.runs.layout import CHECKPOINTS, RECORD
from gpt2ckpt.runs.lock import RunLock, refuse_if_locked
from gpt2ckpt.runs.newest import behind
from gpt2ckpt.runs.resume import Scope


@dataclass(frozen=True)
class Start:
    """What is to be trained, and from which state. Nothing is written yet.

    `directory` is that of the run that is resumed; None for a new run, forks included. With
    `restarts_run`, a run that never came to its first save is restarted in its own directory.

    `lock` is the lock of that directory, taken before the state was read, or of a sweep's job, as
    its new directory was made; None where there is no such directory yet and in a preview.
    `unwritable` is the reason why it could not be locked.
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
    given: list[str] = field(default_factory=list)  # of the overrides, those of this command
    fork_requested: bool = False  # then the data may be other data than the state's

    @contextmanager
    def held(self) -> Iterator[None]:
        """Release the lock at the end of the block, if there is one and nobody trained under it."""
        try:
            yield
        finally:
            if self.lock is not None:
                self.lock.undo()

    @property
    def state(self) -> dict[str, Any] | None:
        """The saved state to begin with, if any."""
        return self.found.state if self.found else None

    @cached_property
    def identity(self) -> RunIdentity:
        """The saved run's identity, or that of a new run."""
        name = str(self.frozen["name"])
        if self.found is None:
            return RunIdentity(secrets.token_hex(4), name)
        run = self.found.state["run"]
        if self.directory is not None:
            return RunIdentity(run["id"], name, run["parent"], run.get("wandb_id"))
        parent = {"id": run["id"], "step": self.found.state["step"], "file": str(self.found.path)}
        return RunIdentity(secrets.token_hex(4), name, parent)

    def skipped(self) -> list[str]:
        """A line for each file that was not taken because it is damaged, or not there."""
        skipped = self.found.skipped if self.found else self.skipped_runs
        return [f"skipped {path}: {reason.removeprefix(f'{path} ')}" for path, reason in skipped]

    def notices(self) -> list[str]:
        """What the user has to know of the resume: files passed over, and each changed key."""
        lines = self.skipped()
        if self.found is None:
            return lines
        verb = "resuming" if self.directory else "forking"
        lines.append(f"{verb} from {self.found.path}, step {self.found.state['step']}")
        return lines + [f"{change}  ({change.effect})" for change in self.changes]


def find_start(
    values: Values,
    overrides: list[str],
    scope: Scope,
    compose: Callable[[list[str]], Values],
    *,
    locks: bool,
) -> Start:
    """Decide how to start from the command line's `overrides` and the `values` that they make.

    With a resume, `values` need only say which and whether to fork. With `locks`, the run directory
    is locked before its state is read, until the block `Start.held` ends: no other process trains
    in it between the decision and the training. Without, for a preview, nothing is locked, and
    nothing may be written afterwards.

    Raises CheckpointError if what is to be resumed is not there, LockedError if another process
    trains it, ConfigError for a change that a resume cannot follow.
    """
    if values["resume"] is None:
        if values["fork"]:
            raise ConfigError("fork=true needs a state to fork from: add +resume=PATH")
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
    lock, unwritable = _lock_to_read(directory)
    try:
        scope = replace(scope, given=directory)
        again = resume.locate(what, scope)  # another process may have trained since
        if place is not None and again is None:
            raise CheckpointError(f"{directory} lost its checkpoints while this was starting")
        if place is not None and again is not None:
            again = replace(again, skipped=place.skipped)
        start = _decide(again, overrides, scope, compose, fork=fork)
    except BaseException:
        if lock is not None:
            lock.undo()
        raise
    return replace(start, lock=lock, unwritable=unwritable)


def _decide(
    place: resume.Place | None,
    overrides: list[str],
    scope: Scope,
    compose: Callable[[list[str]], Values],
    *,
    fork: bool,
) -> Start:
    """How to start from the state in `place`; from none if `auto` found nothing to resume."""
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
    try:
        saved = completed(found.state["config"])
        recorded = still_meant(saved, list(found.state["overrides"]), new, compose)
        frozen, changes = replay(saved, recorded, new, compose)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{found.path} holds no config that can be replayed") from error
    kept = [override for override in recorded if override not in new]  # the last one counts
    directory = None if fork else place.directory
    return Start(
        frozen=frozen,
        overrides=kept + new,
        directory=directory,
        found=found,
        changes=changes,
        restarts_run=restarts_run,
        given=new,
        fork_requested=fork_requested,
    )


def _lock_to_read(directory: Path) -> tuple[RunLock | None, InputError | None]:
    """The lock of a run, or why there is none: what is finished can be read without one.

    Raises LockedError if another process trains in `directory`.
    """
    try:
        return RunLock(directory), None
    except LockedError:
        raise
    except OSError as error:
        return None, _cannot_write(directory, error)
    except InputError as error:
        return None, error


def _origin(directory: Path) -> resume.Place | None:
    """The state that a fork which never came to its first save began with, and begins with again.

    Raises CheckpointError if it is gone: without it, another training would take its place.
    """
    origin = history.forked_from(directory)
    if origin is None:
        return None
    if not origin.is_file():
        raise CheckpointError(
            f"{directory} is a fork of {origin}, which is gone, and holds no checkpoint of its "
            "own: give another hydra.run.dir to start anew"
        )
    return resume.locate(str(origin), Scope(directory.parent))


def _refuse_foreign(found: Found, directory: Path) -> None:
    """Another run's state would silently take the place of this one's."""
    own, owner = history.run_id_in(directory), owner_of(found.state)
    if own and owner not in ("", own):
        raise CheckpointError(
            f"{found.path} is a state of another run, {owner}, and {directory} belongs to run "
            f"{own}: to start a new run from it, add +fork=true"
        )


def _refuse_folders(directory: Path) -> None:
    """Every save would fail where a folder has a checkpoint's name: nothing can replace it."""
    for path in Store(directory / CHECKPOINTS).files():
        if path.is_dir() and not path.is_symlink():
            raise InputError(f"{path} is a folder where checkpoints are saved: move it away")


def take_directory(start: Start, wanted: Path, *, is_given: bool) -> Claim:
    """The directory to train in, locked: that of the run that is resumed, or a new one.

    A run that goes back to an older step has its later checkpoints archived here.
    """
    if start.unwritable is not None:
        raise start.unwritable
    if start.directory is not None or start.restarts_run or not holds_run(wanted):
        _refuse_folders(start.directory or wanted)
    if start.directory is None or start.found is None:
        return _take_new(start, wanted, is_given=is_given)
    assert start.lock is not None, "a preview is not trained"
    with _writing_to(Claim(start.directory, start.lock)) as claimed:
        start.lock.check_place()
        past = history.Past.of(start.directory)  # what cannot be read is refused, nothing moved
        durable.clean_temporaries(start.directory)
        found, store = start.found, Store(start.directory / CHECKPOINTS)
        damaged = _quarantine(start.directory, found)
        finished = _finish_save(start)
        point = Point(int(found.state["step"]), found.path)
        aside = store.roll_back_to(found.path, point.shared_step, datetime.now())
        notices = _bring_history(past, start, point, aside)
        if aside:
            notices.insert(0, f"what came after step {point.shared_step} is set aside in {aside}")
        return replace(claimed, notice="\n".join(filter(None, [*damaged, *finished, *notices])))


def _quarantine(directory: Path, found: Found) -> list[str]:
    """Replace or move away what was skipped, before a save lets it take the place of a valid file.

    Returns what the user has to know. A failure is reported and not raised: the state is safe.
    """
    folder, run = directory / CHECKPOINTS, history.run_id_in(directory)
    try:
        return quarantine(folder, dict(found.skipped), datetime.now(), run)
    except (CheckpointError, OSError) as error:
        return [f"damaged files in {folder} cannot be moved away: {error}"]


def _take_new(start: Start, wanted: Path, *, is_given: bool) -> Claim:
    """The directory of a run without a checkpoint of its own, and the first record in it."""
    if start.lock is not None:
        made = Claim(wanted, start.lock)
    elif start.restarts_run:
        made = reclaim(wanted)
    else:
        made = claim(wanted, datetime.now(), is_given=is_given)
    with _writing_to(made):
        durable.clean_temporaries(made.directory)
        if not start.restarts_run:
            follows = behind(made.directory, datetime.now(UTC))
            history.start_history(made.directory, start.identity, start.frozen, follows)
            return made
        made.lock.check_place()
        if holds_checkpoints(made.directory):  # saved there since this start looked for one
            raise InputError(
                f"{wanted} got its first checkpoint from another process while this one was "
                f"starting: give the same command again to resume from it"
            )
        past = history.Past.of(made.directory)
        return replace(made, notice="\n".join(_bring_history(past, start, Point(), None)))


def complete_interrupted_save(start: Start) -> list[str]:
    """Finish the last save of a run that has come to its end, if a kill cut it off.

    Returns what the user has to know. A failure is reported and not raised: the state is safe.
    """
    if start.directory is None or start.found is None:
        return []
    if not interrupted_save.missing_operations(start.directory / CHECKPOINTS, start.found):
        return []
    if start.unwritable is not None:
        return [_not_finished(start.found, start.unwritable)]
    return _finish_save(start)


def _finish_save(start: Start) -> list[str]:
    """The same for a run whose directory is locked."""
    assert start.directory is not None and start.found is not None
    try:
        made = interrupted_save.complete_save(start.directory / CHECKPOINTS, start.found)
    except (CheckpointError, OSError) as error:
        return [_not_finished(start.found, error)]
    step = start.found.state["step"]
    return [f"{', '.join(made)} did not stand for step {step} yet, and do now"] if made else []


def _not_finished(found: Found, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    step, path = found.state["step"], found.path
    return f"the save of step {step} cannot be finished ({reason}); the state is safe in {path}"


def _bring_history(past: history.Past, start: Start, point: Point, aside: Path | None) -> list[str]:
    saved = start.state["config"] if start.state else start.frozen
    return history.continue_history(
        past,
        start.identity,
        point,
        saved=saved,
        frozen=start.frozen,
        aside=aside,
        follows=behind(past.directory, datetime.now(UTC)),
    )


@contextmanager
def _writing_to(claimed: Claim) -> Iterator[Claim]:
    """Give the directory back if what is written to it first fails."""
    try:
        yield claimed
    except BaseException as error:
        claimed.lock.release()
        if isinstance(error, OSError):
            raise _cannot_write(claimed.directory, error) from error
        raise


def _cannot_write(directory: Path, error: OSError) -> InputError:
    return InputError(
        f"the run directory {directory} cannot be written ({error.strerror or error})"
    )


def restart_overrides(words: list[str], directory: Path) -> list[str]:
    """The command line of a launch whose launcher starts it again after it had `directory`.

    It goes on from the newest state there; as long as there is none, it starts as it did.
    """
    has_state = any((directory / CHECKPOINTS).glob("**/*.pt"))
    dropped = ("hydra.run.dir", *(("resume", "fork") if has_state else ()))
    kept = [word for word in words if not sets(word, *dropped)]
    given = f"hydra.run.dir={spelled(str(directory))}"
    return [*kept, *(["resume=auto"] if has_state else []), given]


def preview_lines(start: Start, wanted: Path, *, is_given: bool) -> list[str]:
    """What training would do with `start`, for those who ask before (dry_run)."""
    if start.directory is not None:
        return ["dry run: nothing is written. It would go on:", *start.notices()]
    where = str(wanted)
    if is_given and not start.restarts_run and holds_run(wanted):
        where = f"{wanted}_run_… ({wanted} holds a run already)"
    return [f"dry run: nothing is written. It would start anew in {where}", *start.notices()]


def hydra_record(directory: Path) -> str:
    """Where Hydra records this launch in `directory`: .hydra, or .hydra/resume_N for the Nth."""
    first = directory / RECORD
    if not first.exists():
        return RECORD
    numbers = [re.fullmatch(r"resume_(\d+)", path.name) for path in first.iterdir()]
    return f"{RECORD}/resume_{1 + max((int(match[1]) for match in numbers if match), default=0)}"
