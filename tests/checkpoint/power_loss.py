"""A simulator of power losses: reconstructs what may be left of a run directory.

POSIX guarantees the bytes of a file after fsync of the file, and a name after fsync of its folder.
Before that, each write may have reached the device completely, partly, as zeros or not at all, and
each change of a name may have reached it or not, independently of all others. `Disk` records the
real system calls below a directory; `crash` draws one of the contents that the directory may have
if the power fails at this moment, and `rebuild` creates a real directory with this content.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest

Write: TypeAlias = tuple[int, bytes | None]  # where, and what; None: cut off there


@dataclass(eq=False)
class File:
    """A file whatever its names: what is surely on the device, and what was done to it since."""

    synced: bytes = b""
    since: list[Write] = field(default_factory=list)

    @property
    def content(self) -> bytes:
        """What programs read."""
        return _written(self.synced, self.since)


@dataclass(eq=False)
class Folder:
    """The names in a folder as programs see them, as they surely are on the device, and changes."""

    live: dict[str, "Node"] = field(default_factory=dict)
    durable: dict[str, "Node"] = field(default_factory=dict)
    pending: list[tuple[str, "Node | None"]] = field(default_factory=list)

    def change(self, name: str, node: "Node | None") -> None:
        _apply(self.live, name, node)
        self.pending.append((name, node))

    def sync(self) -> None:
        self.durable, self.pending = dict(self.live), []


Node: TypeAlias = File | Folder
Content: TypeAlias = dict[str, "tuple[int, bytes] | Content"]  # a file: its number and its bytes


@dataclass
class Disk:
    """The directory `root`. After each recorded call, `after_call` is called."""

    root: Path
    after_call: Callable[["Disk", str], None]
    top: Folder = field(default_factory=Folder)
    opened: dict[int, Node] = field(default_factory=dict)
    calls: int = 0

    def __post_init__(self) -> None:
        self._adopt(self.root, self.top, {})

    def _adopt(self, path: Path, folder: Folder, files: dict[int, File]) -> None:
        """What is there at the beginning counts as durable."""
        for entry in sorted(path.iterdir()):
            if entry.is_dir():
                inner = Folder()
                self._adopt(entry, inner, files)
                folder.live[entry.name] = inner
            else:
                number = entry.stat().st_ino
                file = files.setdefault(number, File(entry.read_bytes()))
                folder.live[entry.name] = file
        folder.sync()

    def place(self, path: Any) -> tuple[Folder, str] | None:
        """The folder and the name of a path below the root."""
        path = Path(os.fspath(path)).absolute()
        if path == self.root or self.root not in path.parents:
            return None
        folder = self.top
        for part in path.relative_to(self.root).parts[:-1]:
            inner = folder.live.get(part)
            if not isinstance(inner, Folder):
                return None
            folder = inner
        return folder, path.name

    def node(self, path: Any) -> Node | None:
        if Path(os.fspath(path)).absolute() == self.root:
            return self.top
        place = self.place(path)
        return place[0].live.get(place[1]) if place else None

    def called(self, call: str) -> None:
        self.calls += 1
        self.after_call(self, call)

    # ------------------------------------------------ what a crash leaves

    def crash(self, dice: random.Random) -> Content:
        """One of the contents that a power loss may leave now."""
        numbers: dict[int, int] = {}
        contents: dict[int, bytes] = {}
        return _after_crash(self.top, dice, numbers, contents)


def _after_crash(
    folder: Folder, dice: random.Random, numbers: dict[int, int], contents: dict[int, bytes]
) -> Content:
    names = dict(folder.durable)
    for name, node in _some(folder.pending, dice):
        _apply(names, name, node)
    left: Content = {}
    for name, node in sorted(names.items()):
        if isinstance(node, Folder):
            left[name] = _after_crash(node, dice, numbers, contents)
            continue
        if id(node) not in contents:
            contents[id(node)] = _bytes_after_crash(node, dice)
        left[name] = (numbers.setdefault(id(node), len(numbers)), contents[id(node)])
    return left


def _some(changes: list[Any], dice: random.Random) -> list[Any]:
    """None, all, the first few, or any of them, in their order."""
    kind = dice.randrange(5)
    if kind == 0:
        return []
    if kind == 1:
        return changes
    if kind == 2:
        return changes[: dice.randrange(len(changes) + 1)]
    return [change for change in changes if dice.random() < 0.5]


def _bytes_after_crash(file: File, dice: random.Random) -> bytes:
    reached: list[Write] = []
    for at, data in _some(file.since, dice):
        kind = dice.randrange(4)
        if data is None or kind == 0:
            reached.append((at, data))
        elif kind == 1:
            reached.append((at, data[: dice.randrange(len(data) + 1)]))
        else:  # the length was written before the blocks were
            whole = dice.randrange(len(data) + 1) if kind == 2 else 0
            reached.append((at, data[:whole] + bytes(len(data) - whole)))
    return _written(file.synced, reached)


def _written(content: bytes, writes: list[Write]) -> bytes:
    buffer = bytearray(content)
    for at, data in writes:
        if data is None:
            del buffer[at:]
        buffer += bytes(max(0, at - len(buffer)))
        if data is not None:
            buffer[at : at + len(data)] = data
    return bytes(buffer)


def _apply(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def rebuild(content: Content, folder: Path) -> None:
    """Make a directory with this content; names of one file are links of one file."""
    _rebuild(content, folder, {})


def _rebuild(content: Content, folder: Path, made: dict[int, Path]) -> None:
    folder.mkdir()
    for name, entry in content.items():
        path = folder / name
        if isinstance(entry, dict):
            _rebuild(entry, path, made)
        elif entry[0] in made:
            path.hardlink_to(made[entry[0]])
        else:
            path.write_bytes(entry[1])
            made[entry[0]] = path


def fingerprint(content: Content) -> int:
    """Tells contents apart within a process."""
    return hash(repr(sorted(_flat(content, ""))))


def _flat(content: Content, path: str) -> Iterator[tuple[str, int, int]]:
    for name, entry in content.items():
        if isinstance(entry, dict):
            yield from _flat(entry, f"{path}/{name}")
        else:
            yield f"{path}/{name}", entry[0], hash(entry[1])


# ---------------------------------------------------------------- recording


@contextmanager
def recorded(  # noqa: C901 - one small function for each call
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Disk]:
    """Run the block with every call that changes something done for real, and recorded."""
    real = {
        name: getattr(os, name)
        for name in (
            *("open", "close", "write", "fsync", "ftruncate", "truncate", "posix_fallocate"),
            *("replace", "rename", "link", "unlink", "mkdir", "rmdir"),
        )
    }

    def open_(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        place = disk.place(path) if isinstance(path, str | Path) else None
        is_new = place is not None and place[1] not in place[0].live
        descriptor: int = real["open"](path, flags, *args, **kwargs)
        disk.opened.pop(descriptor, None)
        if place is not None and is_new and flags & os.O_CREAT:
            place[0].change(place[1], File())
        if isinstance(path, str | Path) and (node := disk.node(path)) is not None:
            disk.opened[descriptor] = node
        if is_new and flags & os.O_CREAT:
            disk.called("create")
        return descriptor

    def close(descriptor: int) -> None:
        disk.opened.pop(descriptor, None)
        real["close"](descriptor)

    def write(descriptor: int, data: Any) -> int:
        at = os.lseek(descriptor, 0, os.SEEK_CUR) if descriptor in disk.opened else 0
        count: int = real["write"](descriptor, data)
        if isinstance(file := disk.opened.get(descriptor), File):
            file.since.append((at, bytes(data[:count])))
            disk.called("write")
        return count

    def fsync(descriptor: int) -> None:
        real["fsync"](descriptor)
        node = disk.opened.get(descriptor)
        if isinstance(node, File):
            node.synced, node.since = node.content, []
        elif isinstance(node, Folder):
            node.sync()
        if node is not None:
            disk.called("fsync")

    def ftruncate(descriptor: int, size: int) -> None:
        real["ftruncate"](descriptor, size)
        if isinstance(file := disk.opened.get(descriptor), File):
            file.since.append((size, None))
            disk.called("ftruncate")

    def truncate(path: Any, size: int) -> None:
        real["truncate"](path, size)
        if isinstance(file := disk.node(path), File):
            file.since.append((size, None))
            disk.called("truncate")

    def posix_fallocate(descriptor: int, offset: int, size: int) -> None:
        real["posix_fallocate"](descriptor, offset, size)
        if isinstance(file := disk.opened.get(descriptor), File):
            end = len(file.content)
            file.since.append((end, bytes(max(0, offset + size - end))))
            disk.called("fallocate")

    def replace(source: Any, target: Any, **kwargs: Any) -> None:
        real["replace"](source, target, **kwargs)
        old, new = disk.place(source), disk.place(target)
        if old and new and old[0].live[old[1]] is not new[0].live.get(new[1]):
            new[0].change(new[1], old[0].live[old[1]])
            old[0].change(old[1], None)
        if old or new:
            disk.called("rename")

    def link(source: Any, name: Any, **kwargs: Any) -> None:
        real["link"](source, name, **kwargs)
        node, place = disk.node(source), disk.place(name)
        if node is not None and place is not None:
            place[0].change(place[1], node)
            disk.called("link")

    def unlink(path: Any, **kwargs: Any) -> None:
        place = disk.place(path)
        real["unlink"](path, **kwargs)
        if place is not None:
            place[0].change(place[1], None)
            disk.called("unlink")

    def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        real["mkdir"](path, *args, **kwargs)
        if (place := disk.place(path)) is not None:
            place[0].change(place[1], Folder())
            disk.called("mkdir")

    def rmdir(path: Any, **kwargs: Any) -> None:
        place = disk.place(path)
        real["rmdir"](path, **kwargs)
        if place is not None:
            place[0].change(place[1], None)
            disk.called("rmdir")

    changed = (open_, close, write, fsync, ftruncate, truncate, posix_fallocate)
    with monkeypatch.context() as patch:
        for function in (*changed, replace, link, unlink, mkdir, rmdir):
            patch.setattr(os, function.__name__.rstrip("_"), function)
        patch.setattr(os, "rename", replace)
        patch.setattr(os, "remove", unlink)
        yield disk
