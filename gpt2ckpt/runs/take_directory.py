"""Take the directory that a process trains in: lock it, and archive what is later than its start.

runs/start.py has already checked everything that can refuse a start. This module writes the first
bytes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from gpt2ckpt.checkpoint import interrupted_save
from gpt2ckpt.checkpoint.archive_folders import ABANDONED
from gpt2ckpt.checkpoint.newest_valid import Found
from gpt2ckpt.checkpoint.reading import step_of
from gpt2ckpt.checkpoint.repair import quarantine
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError, InputError
from gpt2ckpt.files import durable
from gpt2ckpt.runs import history
from gpt2ckpt.runs.claim import Claim, claim, holds_checkpoints, holds_run, reclaim
from gpt2ckpt.runs.events import EventLog
from gpt2ckpt.runs.history import Point
from gpt2ckpt.runs.layout import CHECKPOINTS
from gpt2ckpt.runs.lock import unwritable
from gpt2ckpt.runs.newest import behind
from gpt2ckpt.runs.start import Start
from gpt2ckpt.units import plural


def take_directory(start: Start, wanted: Path, *, is_given: bool) -> Claim:
    """Return the locked directory to train in: that of the resumed run, or a new one.

    A resume quarantines damaged files, completes an interrupted save, archives checkpoints later
    than the start, and truncates metrics.jsonl to the step of the start.

    Args:
        start: The decision of `find_start`.
        wanted: The directory of a new run.
        is_given: Whether the user named `wanted` (hydra.run.dir).

    Raises:
        InputError: The directory cannot be written, or another process has changed it.
    """
    if start.unwritable is not None:
        raise start.unwritable
    if start.directory is not None or start.restarts_run or not holds_run(wanted):
        _refuse_folders(start.directory or wanted)
    if start.directory is None or start.found is None:
        return _take_new(start, wanted, is_given=is_given)
    assert start.lock is not None, "a dry run is not trained"
    with _releasing_on_error(Claim(start.directory, start.lock)) as claimed:
        start.lock.check_place()
        past = history.Past.of(start.directory)  # raises before anything is moved
        durable.clean_temporaries(start.directory)
        found, store = start.found, Store(start.directory / CHECKPOINTS)
        point = _point(found)
        with EventLog(start.directory) as events:
            notices = [*_quarantine(start.directory, found, events), *_complete_save(start)]
            if later := [step_of(path) or 0 for path in store.later_than(point.shared_step)]:
                file, step = str(found.path), point.shared_step
                events.write("rolled_back", step, from_step=max(later), file=file, reason="resume")
                events.sync()
            archive = store.roll_back_to(found.path, point.shared_step, datetime.now())
        if archive:
            notices.append(f"archived the checkpoints after step {point.shared_step} in {archive}")
        notices += _continue_history(past, start, point, archive)
        return replace(claimed, notice="\n".join(notices))


def archive_preview(start: Start) -> list[str]:
    """Return the line for a dry run if `take_directory` would archive later checkpoints."""
    if start.directory is None or start.found is None:
        return []
    folder = start.directory / CHECKPOINTS
    step, damaged = _point(start.found).shared_step, dict(start.found.skipped)
    later = [path for path in Store(folder).later_than(step) if path not in damaged]
    archived = f"the checkpoints after step {step} ({plural(len(later), 'file')})"
    return [f"would archive {archived} in {folder / ABANDONED}…"] if later else []


def complete_interrupted_save(start: Start) -> list[str]:
    """Complete the last save of a finished run if a kill interrupted that save.

    Returns:
        The lines to print. A failure is one of them and is not raised: the state is on disk.
    """
    if start.directory is None or start.found is None:
        return []
    if not interrupted_save.missing_operations(start.directory / CHECKPOINTS, start.found):
        return []
    if start.unwritable is not None:
        return [_incomplete_save(start.found, start.unwritable)]
    return _complete_save(start)


def _point(found: Found) -> Point:
    return Point(found.state.step, found.path)


def _take_new(start: Start, wanted: Path, *, is_given: bool) -> Claim:
    """Return the directory of a run that has not saved yet, with its first record written."""
    if start.lock is not None:
        made = Claim(wanted, start.lock)
    elif start.restarts_run:
        made = reclaim(wanted)
    else:
        made = claim(wanted, datetime.now(), is_given=is_given)
    with _releasing_on_error(made):
        durable.clean_temporaries(made.directory)
        if not start.restarts_run:
            follows = behind(made.directory, datetime.now(UTC))
            history.start_history(made.directory, start.identity, start.frozen, follows)
            return made
        made.lock.check_place()
        if holds_checkpoints(made.directory):  # saved after this start looked for a checkpoint
            raise InputError(
                f"another process saved the first checkpoint in {wanted} while this process was "
                "starting: start the same command again to resume from that checkpoint"
            )
        past = history.Past.of(made.directory)
        return replace(made, notice="\n".join(_continue_history(past, start, Point(), None)))


def _refuse_folders(directory: Path) -> None:
    """Raise InputError if a folder has the name of a checkpoint: no save could replace it."""
    for path in Store(directory / CHECKPOINTS).files():
        if path.is_dir() and not path.is_symlink():
            raise InputError(f"{path} is a folder where checkpoints are saved: move it away")


def _quarantine(directory: Path, found: Found, events: EventLog) -> list[str]:
    """Replace the skipped files or move them away, before a save moves their names.

    Returns the lines to print. A failure is one of them and is not raised: the state is on disk.
    """
    folder, run = directory / CHECKPOINTS, history.run_id_in(directory)
    try:
        return quarantine(folder, dict(found.skipped), datetime.now(), run, events)
    except (CheckpointError, OSError) as error:
        return [f"damaged files in {folder} cannot be moved away: {error}"]


def _complete_save(start: Start) -> list[str]:
    """Complete an interrupted save in a locked directory; return the lines to print."""
    assert start.directory is not None and start.found is not None
    try:
        made = interrupted_save.complete_save(start.directory / CHECKPOINTS, start.found)
    except (CheckpointError, OSError) as error:
        return [_incomplete_save(start.found, error)]
    step = start.found.state.step
    return [f"completed the interrupted save of step {step}: {', '.join(made)}"] if made else []


def _incomplete_save(found: Found, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    step, path = found.state.step, found.path
    return f"the save of step {step} cannot be completed ({reason}); its state is safe in {path}"


def _continue_history(
    past: history.Past, start: Start, point: Point, archive: Path | None
) -> list[str]:
    return history.continue_history(
        past,
        start.identity,
        point,
        saved=start.state.config if start.state else start.frozen,
        frozen=start.frozen,
        archive=archive,
        follows=behind(past.directory, datetime.now(UTC)),
    )


@contextmanager
def _releasing_on_error(claimed: Claim) -> Iterator[Claim]:
    """Release the directory if the first writes to it fail."""
    try:
        yield claimed
    except BaseException as error:
        claimed.lock.release()
        if isinstance(error, OSError):
            raise unwritable(claimed.directory, error) from error
        raise
