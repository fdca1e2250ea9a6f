"""`verify`: check every byte of checkpoint files, in constant memory."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.archive_folders import CORRUPT
from gpt2ckpt.checkpoint.format import FOREIGN
from gpt2ckpt.checkpoint.reading import check, is_checkpoint, read_meta
from gpt2ckpt.checkpoint.repair import INDEPENDENT
from gpt2ckpt.checkpoint.state import CheckpointMeta
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError, InputError
from gpt2ckpt.files import durable
from gpt2ckpt.files.links import inode_of
from gpt2ckpt.files.permissions import unreadable_message
from gpt2ckpt.loggers.metrics_file import to_json
from gpt2ckpt.runs.layout import OUTPUTS
from gpt2ckpt.runs.resume import SELECTORS, Scope, locate
from gpt2ckpt.tools.command_line import Subcommand, add_json
from gpt2ckpt.tools.targets import ROLES, checkpoint_named, find_runs, no_runs
from gpt2ckpt.units import plural


@dataclass(frozen=True)
class Checked:
    """The result for a file; `valid` is None for a file of a different program."""

    path: Path
    valid: bool | None
    step: int | None = None
    error: str | None = None
    note: str | None = None  # on a valid file that contradicts other files of its folder

    def __str__(self) -> str:
        if self.valid:
            note = f"; note: {self.note}" if self.note else ""
            return f"valid    {self.path} (step {self.step}){note}"
        error = self.error or ""
        message = error if error.startswith(str(self.path)) else f"{self.path}: {error}"
        return f"{'foreign' if self.valid is None else 'CORRUPT':8} {message}"


class Checker:
    """Checks files; a file with several names is read once."""

    def __init__(self) -> None:
        self._valid: dict[tuple[int, ...], CheckpointMeta] = {}
        self._inconsistencies: dict[Path, dict[str, str]] = {}

    def __call__(self, path: Path, *, is_given: bool = False) -> Checked:
        """Check one file.

        Args:
            path: the file.
            is_given: whether the user named the file: then it must be a checkpoint.

        Raises:
            FileNotFoundError: if there is no such file.
        """
        info = path.stat()
        role = names.role_of(path.name)
        if not (is_given or role is not None or is_checkpoint(path)):
            return Checked(path, None, error=FOREIGN)
        # A new link changes ctime; the file is then read again.
        key = (*inode_of(info), info.st_size, info.st_ctime_ns)
        if key not in self._valid:
            try:
                check(path)
                self._valid[key] = read_meta(path)
            except CheckpointError as error:
                path.stat()  # fails if a live run has deleted the file
                return Checked(path, False, error=str(error))
        step = _step(self._valid[key])
        if problem := names.content_mismatch(path.name, self._valid[key]):
            return Checked(path, False, step, problem)
        return Checked(path, True, step, note=self._inconsistencies_in(path.parent).get(path.name))

    def _inconsistencies_in(self, folder: Path) -> dict[str, str]:
        if folder not in self._inconsistencies:
            self._inconsistencies[folder] = _inconsistencies(folder)
        return self._inconsistencies[folder]


def _inconsistencies(folder: Path) -> dict[str, str]:
    """Return the names of files that contradict other files of the folder, with the reasons."""
    steps: dict[str, int] = {}
    inodes: dict[tuple[int, int], list[str]] = {}
    for path in Store(folder).files():
        with contextlib.suppress(CheckpointError, FileNotFoundError):
            step, info = _step(read_meta(path)), path.stat()
            inodes.setdefault(inode_of(info), []).append(path.name)
            if step is not None:
                steps[path.name] = step
    found = names.inconsistencies(steps)
    for shared in (same for same in inodes.values() if len(same) > 1):
        for name in (name for name in shared if names.role_of(name) in INDEPENDENT):
            other = next(other for other in shared if other != name)
            found.setdefault(name, f"it is a hard link to {other}, not an independent copy")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `verify`."""
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        help=f"files, runs, folders of runs, or {', '.join(ROLES)} (default: outputs)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a line for each file; return 1 if any is corrupt."""
    results = []
    for checked in _check_all(args.paths):
        results.append(checked)
        if not args.json:
            print(checked, flush=True)
    corrupt = sum(checked.valid is False for checked in results)
    if args.json:
        print(to_json([{**asdict(checked), "path": str(checked.path)} for checked in results]))
    elif results:
        print(f"{plural(len(results), 'file')}, {corrupt} corrupt")
    else:
        print(no_runs(Path(args.paths[0]) if args.paths else None))
    return 1 if corrupt else 0


def _check_all(arguments: list[str]) -> Iterator[Checked]:
    checker = Checker()
    for path, is_given in _targets(arguments):
        try:
            yield checker(path, is_given=is_given)
        except FileNotFoundError:
            if is_given:
                raise InputError(f"{path} does not exist: pass existing files or folders") from None


def _targets(arguments: list[str]) -> list[tuple[Path, bool]]:
    """Return the files to check, and whether the user named each. Raises InputError."""
    targets: list[tuple[Path, bool]] = []
    folders = [] if arguments else [run.folder for run in find_runs(None)]
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_file() or argument in SELECTORS:
            targets.append((path if path.is_file() else checkpoint_named(argument), True))
        else:
            if not path.exists() and path.name == argument:
                locate(argument, Scope(OUTPUTS), key="")  # raises, and names the nearest selector
            folders += [run.folder for run in find_runs(path)]
    return targets + [(file, False) for folder in folders for file in _files(folder)]


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a checkpoints folder, without temporary and quarantined files."""

    def refuse(error: OSError) -> NoReturn:
        raise unreadable_message(error.filename, error) from error

    for parent, inner, files in os.walk(folder, onerror=refuse):
        inner[:] = sorted(name for name in inner if not name.startswith(CORRUPT))
        for name in sorted(files):
            path = Path(parent) / name
            if path.is_file() and not name.endswith(durable.TEMPORARY_SUFFIX):
                yield path


def _step(meta: CheckpointMeta) -> int | None:
    return meta.step if meta.has("step") else None


SUBCOMMAND = Subcommand(
    "check every byte of checkpoints; exit code 1 if anything is corrupt",
    ("", "outputs/gpt2_run_20251106_143022", "latest /backup/best_model.pt --json"),
    add_arguments,
    run,
)
