"""The folder of a sweep: its jobs' directories, read, and made under names of their own."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.reading import read_meta
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.config.earlier import completed
from gpt2ckpt.config.replay import flatten, freeze, task_overrides
from gpt2ckpt.errors import CheckpointError, ConfigError
from gpt2ckpt.files.locks import try_lock
from gpt2ckpt.runs.claim import Claim
from gpt2ckpt.runs.layout import CHECKPOINTS, RECORD
from gpt2ckpt.runs.lock import RunLock
from gpt2ckpt.sweeps.matching import RecordedJob

IN_THE_MAKING = ".new"  # one at a time: under the lock


def read_jobs(sweep: Path) -> list[RecordedJob]:
    """Every job's directory below `sweep` that says what it trains, in the order of their names."""
    found = (read_job(directory) for directory in _directories(sweep))
    return [job for job in found if job is not None]


@contextlib.contextmanager
def locked(sweep: Path) -> Iterator[None]:
    """While it is entered, no other process makes a directory in `sweep`.

    On a file system without locks, that is the user's to avoid.
    """
    descriptor = os.open(sweep, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try_lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def make_directory(
    sweep: Path, number: int, name_of: Callable[[int], str], fill: Callable[[Path, Path], None]
) -> Claim:
    """Make the directory of a new job under the first free name of `name_of(number)`, … (+1), ….

    `fill` gets a temporary directory and the final one's path, and writes the first record. The
    directory gets its name last: under it, no other process finds it unlocked or without a record.
    Call this with the folder `locked`. Raises OSError.
    """
    temporary = sweep / IN_THE_MAKING
    shutil.rmtree(temporary, ignore_errors=True)
    names = _names(number, name_of)
    wanted = next(path for name in names if _is_free(path := sweep / name))
    temporary.mkdir()
    lock = RunLock(temporary)
    try:
        fill(temporary, wanted)
        wanted.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(wanted)  # onto nothing or an empty directory, else it fails
    except BaseException:
        lock.release()
        raise
    lock.follow(wanted)
    return Claim(wanted, lock)


def _names(number: int, name_of: Callable[[int], str]) -> Iterator[str]:
    yield name_of(number)
    for following in count(number + 1):
        name = name_of(following)
        # The user's own hydra.sweep.subdir may have no number in it.
        yield f"{name}_{following}" if name == name_of(number) else name


def _is_free(directory: Path) -> bool:
    return not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))


def _directories(parent: Path) -> Iterator[Path]:
    """The directories with a record or with checkpoints, as near to `parent` as they lie."""
    if not parent.is_dir():
        return
    for path in sorted(parent.iterdir(), key=lambda path: (len(path.name), path.name)):
        if path.name.startswith(".") or not path.is_dir():
            continue
        if (path / RECORD).is_dir() or (path / CHECKPOINTS).is_dir():
            yield path
        else:
            yield from _directories(path)


def read_job(directory: Path) -> RecordedJob | None:
    """Return what a job's directory says of its training; None if it says nothing."""
    for file in Store(directory / CHECKPOINTS).candidates(Role.LATEST):
        try:
            meta = read_meta(file)
            if not (meta.has("overrides") and meta.has("config") and meta.has("step")):
                continue
            values = flatten(freeze(completed(meta.config)))
            return RecordedJob(directory, values, task_overrides(meta.overrides), meta.step)
        except (CheckpointError, ConfigError, KeyError, TypeError, ValueError, AttributeError):
            continue  # damaged: the next one says the same
    try:
        config: Any = OmegaConf.load(directory / RECORD / "config.yaml")
        composed: Any = OmegaConf.to_container(config, resolve=True)
        words: Any = OmegaConf.to_container(OmegaConf.load(directory / RECORD / "overrides.yaml"))
        return RecordedJob(directory, flatten(freeze(composed)), task_overrides(words))
    except (OSError, YAMLError, OmegaConfBaseException, ConfigError, AttributeError, TypeError):
        return None
