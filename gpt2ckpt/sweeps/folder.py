"""Reads the job directories in the folder of a sweep, and creates new ones."""

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
from gpt2ckpt.checkpoint.newest_valid import candidates
from gpt2ckpt.checkpoint.reading import read_meta
from gpt2ckpt.config.earlier import completed
from gpt2ckpt.config.replay import flatten, freeze, task_overrides
from gpt2ckpt.errors import CheckpointError, ConfigError
from gpt2ckpt.files.locks import try_lock
from gpt2ckpt.runs.claim import Claim
from gpt2ckpt.runs.layout import CHECKPOINTS, RECORD
from gpt2ckpt.runs.lock import RunLock
from gpt2ckpt.sweeps.matching import RecordedJob

NEW_DIRECTORY = ".new"  # only one process uses it at a time, because the folder is locked


def read_jobs(sweep: Path) -> list[RecordedJob]:
    """Return the jobs below `sweep` whose directories record a config, sorted by name."""
    found = (read_job(directory) for directory in _directories(sweep))
    return [job for job in found if job is not None]


@contextlib.contextmanager
def locked(sweep: Path) -> Iterator[None]:
    """Prevent other processes from creating job directories in `sweep` during this context.

    On a file system without locks, the context has no effect.
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
    """Create and lock the directory of a new job. Call this function in the context `locked`.

    The directory gets its final name last, so that no other process finds it without its lock or
    without Hydra's record.

    Args:
        sweep: the folder of the sweep.
        number: the wanted number. If it is taken, the next free number is used.
        name_of: returns the name of a directory for a number.
        fill: writes Hydra's record; takes the temporary path and the final path of the directory.

    Raises:
        OSError: if the directory cannot be created.
    """
    temporary = sweep / NEW_DIRECTORY
    shutil.rmtree(temporary, ignore_errors=True)
    names = _names(number, name_of)
    wanted = next(path for name in names if _is_free(path := sweep / name))
    temporary.mkdir()
    lock = RunLock(temporary)
    try:
        fill(temporary, wanted)
        wanted.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(wanted)  # fails unless `wanted` is missing or an empty directory
    except BaseException:
        lock.release()
        raise
    lock.follow(wanted)
    return Claim(wanted, lock)


def _names(number: int, name_of: Callable[[int], str]) -> Iterator[str]:
    yield name_of(number)
    for following in count(number + 1):
        name = name_of(following)
        # A hydra.sweep.subdir that the user set may not contain the number.
        yield f"{name}_{following}" if name == name_of(number) else name


def _is_free(directory: Path) -> bool:
    return not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))


def _directories(parent: Path) -> Iterator[Path]:
    """Yield the topmost directories below `parent` that have Hydra's record or checkpoints."""
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
    """Return the job of a directory; None if no config is recorded in the directory."""
    for file in candidates(directory / CHECKPOINTS, Role.LATEST):
        try:
            meta = read_meta(file)
            if not (meta.has("overrides") and meta.has("config") and meta.has("step")):
                continue
            values = flatten(freeze(completed(meta.config)))
            return RecordedJob(directory, values, task_overrides(meta.overrides), meta.step)
        except (CheckpointError, ConfigError, KeyError, TypeError, ValueError, AttributeError):
            continue  # damaged: the next file holds the same config
    try:
        config: Any = OmegaConf.load(directory / RECORD / "config.yaml")
        composed: Any = OmegaConf.to_container(config, resolve=True)
        overrides: Any = OmegaConf.to_container(
            OmegaConf.load(directory / RECORD / "overrides.yaml")
        )
        return RecordedJob(directory, flatten(freeze(composed)), task_overrides(overrides))
    except (OSError, YAMLError, OmegaConfBaseException, ConfigError, AttributeError, TypeError):
        return None
