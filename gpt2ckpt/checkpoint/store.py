"""One checkpoints/ folder: puts states in under their roles, and finds valid ones again."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from gpt2ckpt.checkpoint import format, names, policy
from gpt2ckpt.checkpoint.archive_folders import ABANDONED, unused_folder
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.reading import check, load_state, read_meta
from gpt2ckpt.checkpoint.state import CheckpointMeta, CheckpointState
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.files import durable

NEXT_BEST = {  # where to look when no file of a role is valid, before the newest of all
    Role.BEST: (Role.BEST_BACKUP, Role.BEST_PREVIOUS),
    Role.BEST_PREVIOUS: (Role.BEST, Role.BEST_BACKUP),
}


@dataclass(frozen=True)
class Found:
    """A valid state, where it was read from, and the files that were passed over before it."""

    path: Path
    state: CheckpointState
    skipped: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Store:
    """A folder; `watch` is told of the bytes that `put` writes and reads back."""

    folder: Path
    watch: durable.Watch = durable.no_progress

    def files(self) -> list[Path]:
        """The checkpoints in the folder, by name; other people's files are passed over."""
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
        """Save a state under every role that `request` gives it; returns its own file.

        The space of a `spare` file is used for it, and the file is gone then. Raises OSError or
        CheckpointError; the roles then stand for what they stood for, or for the new state where it
        was already durable.
        """
        present = {path.name for path in self.files()}
        operations = policy.plan_save(present, request, retention, pinned)
        for operation in operations:
            match operation:
                case policy.Publish(name):
                    durable.publish(
                        self.folder / name,
                        encoded.buffers,
                        check=lambda path: check(path, self.watch),
                        watch=self.watch,
                        spare=spare,
                    )
                    spare = None
                case policy.Link(source, name):
                    durable.link(self.folder / source, self.folder / name, self.watch)
                case policy.Delete():
                    pass
            self.watch(0)
        surplus = [self.folder / op.name for op in operations if isinstance(op, policy.Delete)]
        durable.delete(surplus)
        return self.folder / policy.own_names(request)[0]

    def find(self, role: Role, run: str | None = None) -> Found:
        """The state of `role`, or the next best valid one: a best for best, else the newest.

        States of another run than the one with the id `run`, if given, are the last to be taken.
        Raises CheckpointError if the folder holds no valid state at all.
        """
        skipped: list[tuple[Path, str]] = []
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
        in_place, misplaced = self._by_contradiction(role, run)
        skipped += [item for item in misplaced if names.role_of(item[0].name) in wanted]
        if found := _first_valid([*in_place, *(path for path, _ in misplaced)], skipped):
            return found
        raise CheckpointError(f"no valid checkpoint is left in {self.folder}: {_reasons(skipped)}")

    def last_regular(self, otherwise: Path | None) -> Found | None:
        """The newest rolling file that is valid, else the file `otherwise`, if that is."""
        files = [path for path in self.files() if names.role_of(path.name) is Role.ROLLING]
        files.sort(key=lambda path: names.number_in(path.name) or 0, reverse=True)
        return _first_valid([*files, *([otherwise] if otherwise else [])], [])

    def roll_back_to(self, chosen: Path, step: int, when: datetime) -> Path | None:
        """Set aside every state later than `step`, which a run resumed from `chosen` abandons.

        They are moved to abandoned_YYYYMMDD_HHMMSS/ and latest.pt becomes `chosen`. Returns that
        folder, or None if there was nothing later.
        """
        later = self.later_than(step)
        if not later:
            return None
        aside = unused_folder(self.folder, ABANDONED, when)
        durable.make_directory(aside)
        for path in later:
            durable.link(path, aside / path.name)
        durable.link(chosen, self.folder / names.LATEST)
        durable.delete([path for path in later if path.name != names.LATEST])
        return aside

    def later_than(self, step: int) -> list[Path]:
        """Return the files of later steps, which a rollback to `step` archives."""
        return [path for path in self.files() if (step_of(path) or 0) > step]

    def candidates(self, role: Role) -> Iterator[Path]:
        """Every file of the folder, in the order in which `find` tries them for `role`."""

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

    def _by_contradiction(
        self, role: Role, run: str | None
    ) -> tuple[list[Path], list[tuple[Path, str]]]:
        """The candidates; apart, with the reason, those that lie in the place of another."""
        in_place, misplaced = [], []
        for path in self.candidates(role):
            try:
                reason = misplacement(path, run)
            except CheckpointError:
                reason = None  # what is wrong with it is said when it is loaded
            if reason:
                misplaced.append((path, reason))
            else:
                in_place.append(path)
        return in_place, misplaced

    def _newer_than_latest(self, files: list[Path]) -> list[Path]:
        """Later states of the run of latest.pt, the newest first; none if that cannot be read.

        By what the files say of themselves, never by their times. What a run has left behind to go
        back lies in another folder.
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
        run, *age = ages[latest]
        newer = [path for path, (owner, *its) in ages.items() if owner == run and its > age]
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
    """Return why a file is not what its name says, or not of `run`; None if it is.

    Raises CheckpointError if it cannot be read.
    """
    meta = read_meta(path)
    reason = names.content_mismatch(path.name, meta)
    if not reason and run and meta.run.id not in ("", run):
        reason = f"it is a state of another run, {meta.run.id}"
    return f"{path} cannot be used as {path.name}: {reason}" if reason else None


def _first_valid(paths: list[Path], skipped: list[tuple[Path, str]]) -> Found | None:
    """The first state that can be loaded; the files before it go to `skipped`."""
    for path in paths:
        try:
            return Found(path, load_state(path), skipped)
        except CheckpointError as error:
            skipped.append((path, str(error)))
    return None


def _reasons(skipped: list[tuple[Path, str]]) -> str:
    """Every file by name, those with the same reason together."""
    files: dict[str, list[str]] = {}
    for path, reason in skipped:
        files.setdefault(reason.removeprefix(f"{path} "), []).append(path.name)
    return "; ".join(f"{', '.join(called)} {reason}" for reason, called in files.items())


def _run_and_age(meta: CheckpointMeta) -> tuple[str, int, str]:
    """The run of a state, its step, and when it was saved: two states of a step can differ."""
    return meta.run.id, meta.step if meta.has("step") else -1, meta.saved_at
