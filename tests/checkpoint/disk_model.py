"""A model of the contents that a folder may have after a power loss.

POSIX guarantees the bytes of a file after fsync of the file, and a name after fsync of its folder.
Before that, each change of a name may or may not have reached the disk, in any order. The model
records the real system calls of a block of code. After each call, it passes to `check` every
content that the folder may have if the power fails at this moment.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpt2ckpt.checkpoint import format
from gpt2ckpt.errors import CheckpointError

Names = dict[str, "Inode"]


@dataclass(eq=False)
class Inode:
    """A file whatever its names. `step` is that of the valid state synced in it, else None."""

    step: int | None = None


@dataclass
class DiskModel:
    """The names in `folder` as programs see them, as they are surely on disk, and in between."""

    folder: Path
    check: Callable[[Names], None]
    calls: list[tuple[str, str]] = field(default_factory=list)
    live: Names = field(default_factory=dict)
    durable: Names = field(default_factory=dict)
    pending: list[tuple[str, Inode | None]] = field(default_factory=list)
    opened: dict[int, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        by_number: dict[int, Inode] = {}
        for path in sorted(self.folder.iterdir()):
            if path.is_file():
                inode = by_number.setdefault(path.stat().st_ino, Inode(valid_step(path)))
                self.live[path.name] = inode
        self.durable = dict(self.live)

    def after_power_loss(self) -> Iterator[Names]:
        """Every content of the folder that a power loss may leave now."""
        for count in range(len(self.pending) + 1):
            for kept in itertools.combinations(self.pending, count):
                names = dict(self.durable)
                for name, inode in kept:
                    _apply(names, name, inode)
                yield names

    def _change(self, name: str, inode: Inode | None) -> None:
        _apply(self.live, name, inode)
        self.pending.append((name, inode))

    def _called(self, call: str, path: Path) -> None:
        self.calls.append((call, path.name))
        for names in self.after_power_loss():
            self.check(names)

    def on_open(self, descriptor: int, path: Path, flags: int) -> None:
        self.opened[descriptor] = path
        if path.parent == self.folder and flags & os.O_CREAT:
            self._change(path.name, Inode())
            self._called("create", path)

    def on_write(self, descriptor: int) -> None:
        path = self.opened.get(descriptor)
        if path is not None and path.parent == self.folder:
            self.live[path.name].step = None
            self._called("write", path)

    def on_fsync(self, descriptor: int) -> None:
        path = self.opened[descriptor]
        if path == self.folder:
            self.durable, self.pending = dict(self.live), []
        elif path.parent == self.folder and path.name in self.live:
            self.live[path.name].step = valid_step(path)
        self._called("fsync", path)

    def on_replace(self, source: Path, target: Path) -> None:
        inode = self.live.get(source.name) if target.parent == self.folder else None
        if inode and self.live.get(target.name) is not inode:  # else rename(2) does nothing
            self._change(target.name, inode)
            self._change(source.name, None)
        self._called("rename", target)

    def on_link(self, source: Path, name: Path) -> None:
        if name.parent == self.folder:
            self._change(name.name, self.live[source.name])
        self._called("link", name)

    def on_unlink(self, path: Path) -> None:
        if path.parent == self.folder:
            self._change(path.name, None)
        self._called("unlink", path)


def valid_step(path: Path) -> int | None:
    """The step of the state in a file, None if it is not valid."""
    try:
        with path.open("rb") as file:
            return int(format.verify(file).meta["step"])
    except CheckpointError:
        return None


def _apply(names: Names, name: str, inode: Inode | None) -> None:
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode


@contextmanager
def followed(model: DiskModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[DiskModel]:
    """Run the block with every call that changes a file or a name done for real and recorded."""
    real_open, real_write, real_fsync = os.open, os.write, os.fsync
    real_replace, real_link, real_unlink = os.replace, os.link, os.unlink

    def open_(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        descriptor = real_open(path, flags, *args, **kwargs)
        model.on_open(descriptor, Path(path), flags)
        return descriptor

    def write(descriptor: int, data: Any) -> int:
        count = real_write(descriptor, data)
        model.on_write(descriptor)
        return count

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        model.on_fsync(descriptor)

    def replace(source: Any, target: Any, **kwargs: Any) -> None:
        real_replace(source, target, **kwargs)
        model.on_replace(Path(source), Path(target))

    def link(source: Any, name: Any, **kwargs: Any) -> None:
        real_link(source, name, **kwargs)
        model.on_link(Path(source), Path(name))

    def unlink(path: Any, **kwargs: Any) -> None:
        real_unlink(path, **kwargs)
        model.on_unlink(Path(path))

    with monkeypatch.context() as patch:
        for function in (open_, write, fsync, replace, link, unlink):
            patch.setattr(os, function.__name__.rstrip("_"), function)
        yield model
