"""Durable writes: their order, and the files that remain after a failure."""

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoint_helpers import largest_file, names_in
from disk_model import DiskModel, followed

from gpt2ckpt.files import durable


def accept(path: Path) -> None:
    """A check that finds nothing wrong."""


def refuse(path: Path) -> None:
    raise ValueError("not what was meant")


def inode(path: Path) -> int:
    return path.stat().st_ino


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file that is there already, alone in its folder."""
    path = tmp_path / "folder" / "latest.pt"
    path.parent.mkdir()
    path.write_bytes(b"old")
    return path


def assert_untouched(target: Path) -> None:
    assert target.read_bytes() == b"old"
    assert names_in(target.parent) == {target.name}


# ---------------------------------------------------------------- publish


def test_publish_writes_all_buffers(target: Path) -> None:
    durable.publish(target, [b"new ", memoryview(b"bytes"), b"", memoryview(b"")], accept)
    assert target.read_bytes() == b"new bytes"
    assert names_in(target.parent) == {target.name}


def test_publish_continues_after_partial_write(target: Path) -> None:
    """write(2) takes what it likes: here it is made to take five bytes at most."""
    real_write = os.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: real_write(fd, data[:5]))
        durable.publish(target, [b"a long line of bytes", b"!"], accept)
    assert target.read_bytes() == b"a long line of bytes!"


def test_publish_syncs_checks_renames_and_syncs_the_folder(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DiskModel(target.parent, check=lambda names: None)

    def check(path: Path) -> None:
        assert path.read_bytes() == b"new"
        assert target.read_bytes() == b"old"
        model.calls.append(("check", path.name))

    with followed(model, monkeypatch):
        durable.publish(target, [b"new"], check)
    temporary = model.calls[0][1]
    assert temporary.startswith(".latest.pt.")
    assert model.calls == [
        ("create", temporary),
        ("write", temporary),
        ("fsync", temporary),
        ("check", temporary),
        ("rename", "latest.pt"),
        ("fsync", "folder"),
    ]


def test_publish_reads_back_without_the_page_cache(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    for name in ("fsync", "posix_fadvise"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: (order.append((n, *a[1:])), r(*a)))
    durable.publish(target, [b"new"], lambda path: order.append(("check",)))
    assert order[:3] == [
        ("fsync",),
        ("posix_fadvise", 0, 0, os.POSIX_FADV_DONTNEED),
        ("check",),
    ]


def test_publish_works_without_posix_fadvise(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")  # as on macOS
    durable.publish(target, [b"new"], accept)
    assert target.read_bytes() == b"new"


def test_file_that_fails_check_is_not_published(target: Path) -> None:
    with pytest.raises(ValueError, match="not what was meant"):
        durable.publish(target, [b"new"], refuse)
    assert_untouched(target)


@pytest.mark.parametrize("call", ["write", "fsync", "posix_fadvise", "replace", "close"])
def test_a_failing_call_leaves_the_old_file(
    target: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real_close = os.close

    def fail(*arguments: Any, **options: Any) -> None:
        if call == "close":
            real_close(*arguments)
        raise OSError(errno.EIO, "the device failed")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="the device failed"):
            durable.publish(target, [b"new"], accept)
    assert_untouched(target)


def test_an_interrupt_leaves_the_old_file(target: Path) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        durable.publish(target, [b"new"], interrupt)
    assert_untouched(target)


def test_a_folder_that_cannot_be_synced_is_an_error(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new name stands, but nobody may call it saved."""

    def fail(folder: Path) -> None:
        raise OSError(errno.EIO, "the device failed")

    monkeypatch.setattr(durable, "sync_directory", fail)
    with pytest.raises(OSError, match="the device failed"):
        durable.publish(target, [b"new"], accept)
    assert target.read_bytes() == b"new"
    assert names_in(target.parent) == {target.name}


def test_file_size_limit_leaves_old_file(target: Path) -> None:
    with largest_file(1000), pytest.raises(OSError) as caught:
        durable.publish(target, [bytes(900), bytes(900)], accept)
    assert caught.value.errno == errno.EFBIG
    assert_untouched(target)


def test_a_full_disk_leaves_the_old_file(tiny_disk: Path) -> None:
    target = tiny_disk / "latest.pt"
    target.write_bytes(b"old")
    with pytest.raises(OSError) as caught:
        durable.publish(target, [bytes(2 << 20)], accept)
    assert caught.value.errno == errno.ENOSPC
    assert_untouched(target)
    durable.publish(target, [bytes(1 << 19)], accept)
    assert target.stat().st_size == 1 << 19


def test_a_kill_at_any_call_leaves_old_or_new(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every content that a power loss may leave has the old file or the new one, synced."""
    old = DiskModel(target.parent, check=lambda names: None).live[target.name]
    new_is_synced = False

    def check(names: dict[str, Any]) -> None:
        assert names[target.name] is model.live[target.name] or names[target.name] is old
        assert names[target.name] is old or new_is_synced

    model = DiskModel(target.parent, check=check)
    old = model.live[target.name]

    def synced(path: Path) -> None:
        nonlocal new_is_synced
        new_is_synced = ("fsync", path.name) in model.calls

    with followed(model, monkeypatch):
        durable.publish(target, [b"new"], synced)


# ---------------------------------------------------------------- link


def test_link_shares_the_blocks_and_syncs_the_folder(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = target.with_name("rolling.pt")
    name.write_bytes(b"older")
    model = DiskModel(target.parent, check=lambda names: None)
    with followed(model, monkeypatch):
        durable.link(target, name)
    assert inode(target) == inode(name)
    assert names_in(target.parent) == {target.name, name.name}
    calls = [call for call, _ in model.calls]
    assert calls.index("link") < calls.index("rename") < calls.index("fsync")
    assert model.calls[-1] == ("fsync", "folder")


def test_link_of_two_names_of_one_file_leaves_no_temporary(target: Path) -> None:
    """rename(2) does nothing between two links of one file."""
    name = target.with_name("rolling.pt")
    for _ in range(2):
        durable.link(target, name)
    durable.link(target, target)
    assert inode(target) == inode(name)
    assert names_in(target.parent) == {target.name, name.name}


def test_a_failing_link_leaves_both_names(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.EIO, "the device failed")

    name = target.with_name("rolling.pt")
    name.write_bytes(b"older")
    for call in ("link", "replace"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="the device failed"):
            patch.setattr(os, call, fail)
            durable.link(target, name)
    assert (target.read_bytes(), name.read_bytes()) == (b"old", b"older")
    assert names_in(target.parent) == {target.name, name.name}
    with pytest.raises(FileNotFoundError):
        durable.link(target.with_name("missing.pt"), name)


def test_link_copies_to_another_file_system(target: Path) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == target.stat().st_dev:
        pytest.skip("there is no second file system here")
    source = shared_memory / f"{durable.temporary_name(target).name}.source"
    try:
        source.write_bytes(b"from elsewhere")
        durable.link(source, target)
    finally:
        source.unlink()
    assert target.read_bytes() == b"from elsewhere"
    assert names_in(target.parent) == {target.name}


def no_links(*arguments: Any, **options: Any) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")  # what vfat says


def test_without_hard_links_a_copy_is_published(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(durable, "CHUNK", 2)
    name = target.with_name("rolling.pt")
    model = DiskModel(target.parent, check=lambda names: None)
    with followed(model, monkeypatch):
        durable.link(target, name)
    assert name.read_bytes() == b"old"
    assert inode(name) != inode(target)
    calls = [call for call, _ in model.calls]
    assert calls == ["create", "write", "write", "fsync", "rename", "fsync"]


def test_a_copy_that_differs_is_not_published(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "write", lambda fd, data: real_write(fd, b"x" * len(data)))
    with pytest.raises(OSError, match="a copy differs from its source"):
        durable.link(target, target.with_name("rolling.pt"))
    assert_untouched(target)


def test_a_disk_without_hard_links(disk_without_links: Path) -> None:
    source, name = disk_without_links / "latest.pt", disk_without_links / "rolling.pt"
    durable.publish(source, [b"new"], accept)
    durable.link(source, name)
    assert name.read_bytes() == b"new"
    source.write_bytes(b"xxx")
    assert name.read_bytes() == b"new"
    assert names_in(disk_without_links) == {source.name, name.name}


# ---------------------------------------------------------------- delete, folders, temporaries


def test_delete_syncs_every_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / folder / name for folder in "ab" for name in ("1", "2")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    synced: list[Path] = []
    monkeypatch.setattr(durable, "sync_directory", synced.append)
    durable.delete([*paths, tmp_path / "a" / "gone"])
    assert not any(path.exists() for path in paths)
    assert sorted(synced) == [tmp_path / "a", tmp_path / "b"]


def test_make_directory_makes_each_new_name_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    real = durable.sync_directory
    monkeypatch.setattr(durable, "sync_directory", lambda path: (synced.append(path), real(path)))
    durable.make_directory(tmp_path / "run" / "checkpoints")
    assert (tmp_path / "run" / "checkpoints").is_dir()
    assert set(synced) == {tmp_path, tmp_path / "run"}
    durable.make_directory(tmp_path / "run" / "checkpoints")


def dead_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_clean_temporaries_deletes_only_files_of_dead_processes(tmp_path: Path) -> None:
    host, dead = socket.gethostname(), dead_process()
    mine = {
        f".latest.pt.{host}-{dead}-0123abcd.tmp",
        f".rolling_step_000250.pt.{host}-{dead}-89abcdef.tmp",
    }
    others = {
        *("latest.pt", ".tmp", ".notes.tmp", "notes.tmp", "my.pt.tmp", f".x.{host}.tmp"),
        f".latest.pt.{host}-{os.getppid()}-0123abcd.tmp",  # alive
        f".latest.pt.other-{host}-{dead}-0123abcd.tmp",  # of another host
        f".latest.pt.{host}x-{dead}-0123abcd.tmp",
        f".latest.pt.{host}-{dead}-0123abcd.tmp.bak",
        f".latest.pt.{host}-{dead}-0123ABCD.tmp",
        f".latest.pt.{host}-{dead}-0123abc.tmp",
        f".latest.pt.{host}-{'9' * 30}-0123abcd.tmp",  # no process has such a number
        f"latest.pt.{host}-{dead}-0123abcd.tmp",
    }
    for name in mine | others:
        (tmp_path / name).touch()
    assert {path.name for path in durable.clean_temporaries(tmp_path)} == mine
    assert names_in(tmp_path) == others
    elsewhere = {name for name in others if f"{host}x-" in name or f"other-{host}" in name}
    alike = {f".latest.pt.other-{host}-{dead}-0123abcd.tmp"}
    found = {path.name for path in durable.clean_temporaries(tmp_path, of_all_hosts=True)}
    assert found == elsewhere | alike


def test_clean_temporaries_matches_names_of_publish(tmp_path: Path) -> None:
    """Also those of a dead process that had our number, as the first of a container has."""
    left = durable.temporary_name(tmp_path / "latest.pt")
    left.touch()
    assert left.parent == tmp_path
    assert durable.clean_temporaries(tmp_path) == [left]
    assert left != durable.temporary_name(tmp_path / "latest.pt")


def test_a_process_killed_while_writing_leaves_the_old_file(target: Path) -> None:
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from gpt2ckpt.files import durable\n"
        "durable.publish(Path(sys.argv[1]), [b'new'], lambda path: os.kill(os.getpid(), 9))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(target)])
    assert done.returncode == -9
    assert target.read_bytes() == b"old"
    assert len(names_in(target.parent)) == 2
    assert len(durable.clean_temporaries(target.parent)) == 1
    assert_untouched(target)
