"""One checkpoints/ folder: saves states under their roles, and finds valid ones."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from gpt2ckpt.checkpoint import format, names, policy
from gpt2ckpt.checkpoint.archive_folders import ABANDONED, unused_folder
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.policy import Delete, Link, Operation, Publish
from gpt2ckpt.checkpoint.reading import check, load_state, read_meta
from gpt2ckpt.checkpoint.state import CheckpointMeta, CheckpointState
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.files import durable

NEXT_BEST = {  # the roles to try when no file of a role is valid, before the newest of all files
    Role.BEST: (Role.BEST_BACKUP, Role.BEST_PREVIOUS),
    Role.BEST_PREVIOUS: (Role.BEST, Role.BEST_BACKUP),
}
Skipped = list[tuple[Path, str]]  # files that were not taken, each with the reason


@dataclass(frozen=True)
class Found:
    """A valid state, the file that it was read from, and the files that were skipped."""

    path: Path
    state: CheckpointState
    skipped: Skipped = field(default_factory=list)


@dataclass(frozen=True)
class Store:
    """A checkpoints/ folder.

    Its files are named by role; a name moves to another state by an atomic rename. Only files with
    such names are replaced, moved or deleted.

    Attributes:
        folder: checkpoints/.
        watch: called with the number of bytes of each write and read of `put`.
    """

    folder: Path
    watch: durable.Watch = durable.no_progress

    def files(self) -> list[Path]:
        """Return the checkpoints in the folder by name, without a user's own files."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if names.role_of(path.name))

    def put(
        self,
        encoded: format.Encoded,
        request: policy.SaveRequest,
        retention: policy.Retention,
        pinned: frozenset[str] = frozenset(),
        spare: Path | None = None,
    ) -> Path:
        """Save a state under every role of `request`, and delete what `retention` does not keep.

        Args:
            encoded: the bytes of the state.
            request: the roles.
            retention: the sizes of the pools.
            pinned: names that are never deleted.
            spare: a file whose disk blocks the new file uses; it is gone afterwards.

        Returns:
            The state's own file.

        Raises:
            OSError, CheckpointError: the save failed. Each name then has its old state, or the new
                state where that was durable already.
        """
        spares = [spare] if spare is not None else []

        def publish(target: Path) -> None:
            durable.publish(
                target,
                encoded.buffers,
                check=lambda path: check(path, self.watch),
                watch=self.watch,
                spare=spares.pop() if spares else None,
            )

        present = {path.name for path in self.files()}
        self._apply(policy.plan_save(present, request, retention, pinned), publish)
        return self.folder / policy.own_names(request)[0]

    def copy(self, source: Path, operations: Sequence[Publish | Link]) -> None:
        """Carry out `operations` with the state in the file `source` as the new state.

        Raises what `put` does.
        """
        self._apply(
            operations, lambda target: durable.publish(target, durable.chunks(source), check)
        )

    def _apply(self, operations: Sequence[Operation], publish: Callable[[Path], None]) -> None:
        for operation in operations:
            match operation:
                case Publish(name):
                    publish(self.folder / name)
                case Link(source, name):
                    durable.link(self.folder / source, self.folder / name, self.watch)
            self.watch(0)
        durable.delete([self.folder / op.name for op in operations if isinstance(op, Delete)])

    def find(self, role: Role, run: str | None = None) -> Found:
        """Return the state of `role`, or the next best valid state.

        That is another best state for `best`, otherwise the newest. States of another run than
        `run`, if that is given, are tried last. Raises CheckpointError without any valid state.
        """
        skipped: Skipped = []
        files = self.files()
        if not files:
            raise CheckpointError(
                f"there is no checkpoint in {self.folder}: name a run directory or a file"
            )
        wanted = (role, *NEXT_BEST.get(role, ()))
        if role is not Role.LATEST and not any(names.role_of(p.name) in wanted for p in files):
            raise CheckpointError(f"there is no {role} checkpoint in {self.folder}")
        if not any(names.role_of(path.name) is role for path in files):
            skipped.append((self.folder, f"it holds no {role} checkpoint"))
        in_place, misplaced = self._split_misplaced(role, run)
        skipped += [item for item in misplaced if names.role_of(item[0].name) in wanted]
        if found := _first_valid([*in_place, *(path for path, _ in misplaced)], skipped):
            return found
        raise CheckpointError(f"no valid checkpoint is left in {self.folder}: {_reasons(skipped)}")

    def last_regular(self, otherwise: Path | None) -> Found | None:
        """Return the newest valid rolling file, or else the file `otherwise` if it is valid."""
        files = [path for path in self.files() if names.role_of(path.name) is Role.ROLLING]
        files.sort(key=lambda path: names.number_in(path.name) or 0, reverse=True)
        return _first_valid([*files, *([otherwise] if otherwise else [])], [])

    def roll_back_to(self, chosen: Path, step: int, when: datetime) -> Path | None:
        """Archive every state after `step`, and link latest.pt to the file `chosen`.

        Each state has a name at every instant: it is linked in the archive folder first.

        Returns:
            The folder abandoned_YYYYMMDD_HHMMSS/; None if there was no later state.
        """
        later = self.later_than(step)
        if not later:
            return None
        archive = unused_folder(self.folder, ABANDONED, when)
        durable.make_directory(archive)
        for path in later:
            durable.link(path, archive / path.name)
        durable.link(chosen, self.folder / names.LATEST)
        durable.delete([path for path in later if path.name != names.LATEST])
        return archive

    def later_than(self, step: int) -> list[Path]:
        """Return the files of later steps, which a rollback to `step` archives."""
        return [path for path in self.files() if (step_of(path) or 0) > step]

    def candidates(self, role: Role) -> Iterator[Path]:
        """Yield every file of the folder in the order in which `find` tries them for `role`."""

        def age(path: Path) -> tuple[int, str]:
            return names.number_in(path.name) or 0, path.name

        files = self.files()
        if role is Role.LATEST:  # a kill may have come between a save and its name latest.pt
            newer = self._newer_than_latest(files)
            yield from newer
            files = [path for path in files if path not in newer]
        preferred = (role, *NEXT_BEST.get(role, ()))
        for wanted in preferred:
            pool = [path for path in files if names.role_of(path.name) is wanted]
            yield from sorted(pool, key=age, reverse=True)
        rest = [path for path in files if names.role_of(path.name) not in preferred]
        steps = {path: -1 if (step := step_of(path)) is None else step for path in rest}
        yield from sorted(rest, key=lambda path: steps[path], reverse=True)

    def _split_misplaced(self, role: Role, run: str | None) -> tuple[list[Path], Skipped]:
        """Return the candidates whose content fits their name, and the others with the reason."""
        in_place: list[Path] = []
        misplaced: Skipped = []
        for path in self.candidates(role):
            try:
                reason = misplacement(path, run)
            except CheckpointError:
                reason = None  # loading it gives the error
            if reason:
                misplaced.append((path, reason))
            else:
                in_place.append(path)
        return in_place, misplaced

    def _newer_than_latest(self, files: list[Path]) -> list[Path]:
        """Return the files of later states than latest.pt, newest first.

        Compared are the run, the step and the time in the files, never the times of the files. The
        list is empty if latest.pt cannot be read.
        """
        latest = self.folder / names.LATEST
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


def step_of(path: Path) -> int | None:
    """Return the step that a file holds, else the one in its name; None if there is neither."""
    with contextlib.suppress(CheckpointError):
        meta = read_meta(path)
        if meta.has("step"):
            return meta.step
    named = names.role_of(path.name) in (Role.ROLLING, Role.EMERGENCY)
    return names.number_in(path.name) if named else None


def misplacement(path: Path, run: str | None) -> str | None:
    """Return why a file does not fit its name or the run with the id `run`; None if it fits both.

    Raises CheckpointError if the file cannot be read.
    """
    meta = read_meta(path)
    reason = names.content_mismatch(path.name, meta)
    if not reason and run and meta.run.id not in ("", run):
        reason = f"it is a state of another run, {meta.run.id}"
    return f"{path} cannot be used as {path.name}: {reason}" if reason else None


def _first_valid(paths: list[Path], skipped: Skipped) -> Found | None:
    """Return the first state that can be loaded; the files before it are added to `skipped`."""
    for path in paths:
        try:
            return Found(path, load_state(path), skipped)
        except CheckpointError as error:
            skipped.append((path, str(error)))
    return None


def _reasons(skipped: Skipped) -> str:
    """Return the skipped files with their reasons; files with the same reason are listed once."""
    files: dict[str, list[str]] = {}
    for path, reason in skipped:
        files.setdefault(reason.removeprefix(f"{path} "), []).append(path.name)
    return "; ".join(f"{', '.join(same)} {reason}" for reason, same in files.items())


def _run_and_age(meta: CheckpointMeta) -> tuple[str, int, str]:
    """Return the run, the step and the time of a state: two states of a step can differ."""
    return meta.run.id, meta.step if meta.has("step") else -1, meta.saved_at
