"""Choose the checkpoint to use: the newest valid file of a role, or else the next best file."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.reading import load_state, misplacement, read_meta, step_of
from gpt2ckpt.checkpoint.state import CheckpointMeta, CheckpointState
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError

NEXT_BEST = {  # roles to try if no file of a role is valid, before the newest of all files
    Role.BEST: (Role.BEST_BACKUP, Role.BEST_PREVIOUS),
    Role.BEST_PREVIOUS: (Role.BEST, Role.BEST_BACKUP),
}
Skipped = list[tuple[Path, str]]  # files that were skipped, with the reason for each


@dataclass(frozen=True)
class Found:
    """A valid state, the file that it was read from, and the files that were skipped before it."""

    path: Path
    state: CheckpointState
    skipped: Skipped = field(default_factory=list)


def find_valid(folder: Path, role: Role, run: str | None = None) -> Found:
    """Return the newest valid state of a role, or else the next best valid state.

    The next best state of a best role is that of a different best role, and otherwise the newest.

    Args:
        folder: The checkpoints/ folder.
        role: The role.
        run: The id of the run, if known: files of different runs are tried last.

    Raises:
        CheckpointError: The folder holds no file of the role, or no valid file.
    """
    skipped: Skipped = []
    files = Store(folder).files()
    if not files:
        raise CheckpointError(f"there is no checkpoint in {folder}: name a run directory or a file")
    wanted = (role, *NEXT_BEST.get(role, ()))
    if role is not Role.LATEST and not any(names.role_of(p.name) in wanted for p in files):
        raise CheckpointError(f"there is no {role} checkpoint in {folder}")
    if not any(names.role_of(path.name) is role for path in files):
        skipped.append((folder, f"it holds no {role} checkpoint"))
    in_place, misplaced = _split_misplaced(folder, role, run)
    skipped += [item for item in misplaced if names.role_of(item[0].name) in wanted]
    if found := _first_valid([*in_place, *(path for path, _ in misplaced)], skipped):
        return found
    raise CheckpointError(f"no valid checkpoint is left in {folder}: {_reasons(skipped)}")


def newest_regular(folder: Path, otherwise: Path | None) -> Found | None:
    """Return the newest valid rolling file, or else the file `otherwise` if it is valid."""
    files = [path for path in Store(folder).files() if names.role_of(path.name) is Role.ROLLING]
    files.sort(key=lambda path: names.number_in(path.name) or 0, reverse=True)
    return _first_valid([*files, *([otherwise] if otherwise else [])], [])


def candidates(folder: Path, role: Role) -> Iterator[Path]:
    """Yield every file of the folder in the order in which `find_valid` tries them."""

    def age(path: Path) -> tuple[int, str]:
        return names.number_in(path.name) or 0, path.name

    files = Store(folder).files()
    if role is Role.LATEST:  # a kill may have come between a save and its name latest.pt
        newer = _newer_than_latest(folder, files)
        yield from newer
        files = [path for path in files if path not in newer]
    preferred = (role, *NEXT_BEST.get(role, ()))
    for wanted in preferred:
        of_role = [path for path in files if names.role_of(path.name) is wanted]
        yield from sorted(of_role, key=age, reverse=True)
    rest = [path for path in files if names.role_of(path.name) not in preferred]
    steps = {path: -1 if (step := step_of(path)) is None else step for path in rest}
    yield from sorted(rest, key=lambda path: steps[path], reverse=True)


def _split_misplaced(folder: Path, role: Role, run: str | None) -> tuple[list[Path], Skipped]:
    """Return the candidates whose content fits their name, and the others with a reason each."""
    in_place: list[Path] = []
    misplaced: Skipped = []
    for path in candidates(folder, role):
        try:
            reason = misplacement(path, run)
        except CheckpointError:
            reason = None  # loading the file raises the same error
        if reason:
            misplaced.append((path, reason))
        else:
            in_place.append(path)
    return in_place, misplaced


def _newer_than_latest(folder: Path, files: list[Path]) -> list[Path]:
    """Return the files of later states than latest.pt, newest first.

    The run, the step and the time in the files are compared, never the times of the files. The list
    is empty if latest.pt cannot be read.
    """
    latest = folder / names.LATEST
    if latest not in files:
        return []
    ages = {}
    for path in files:
        with contextlib.suppress(CheckpointError):
            ages[path] = _run_and_age(read_meta(path))
    if latest not in ages:
        return []
    run = ages[latest][0]
    newer = [path for path, age in ages.items() if age[0] == run and age > ages[latest]]
    return sorted(newer, key=lambda path: ages[path], reverse=True)


def _first_valid(paths: list[Path], skipped: Skipped) -> Found | None:
    """Return the first state that can be loaded; the files before it are added to `skipped`."""
    for path in paths:
        try:
            return Found(path, load_state(path), skipped)
        except CheckpointError as error:
            skipped.append((path, str(error)))
    return None


def _reasons(skipped: Skipped) -> str:
    """Return the skipped files and their reasons as text, each reason once."""
    files: dict[str, list[str]] = {}
    for path, reason in skipped:
        files.setdefault(reason.removeprefix(f"{path} "), []).append(path.name)
    return "; ".join(f"{', '.join(same)} {reason}" for reason, same in files.items())


def _run_and_age(meta: CheckpointMeta) -> tuple[str, int, str]:
    """Return the run, the step and the time of a state: a run can save a step twice."""
    return meta.run.id, meta.step if meta.has("step") else -1, meta.saved_at
