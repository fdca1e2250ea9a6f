"""Digests of complete files: their coverage, their computation in the background, their cache."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from gpt2ckpt.data import digest
from gpt2ckpt.data.digest import Contents
from gpt2ckpt.data.token_files import TokenFile, open_token_file
from gpt2ckpt.errors import InputError

VALUES = np.random.default_rng(0).integers(0, 50257, 1_500_000).astype("<u2")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of a separate cache that stores digests of files of any size and age."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digest, "_CACHED", 0)
    monkeypatch.setattr(digest, "_SETTLED", -1.0)
    return tmp_path / "cache" / "gpt2ckpt" / "data_digests.json"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.bin"
    VALUES.tofile(path)
    return path


def opened(path: Path) -> TokenFile:
    return open_token_file(path, 50257)


def read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, list[str] | None]:
    """Return whether the file was read, and its digest."""
    calls = []
    real = digest._digest
    with monkeypatch.context() as patch:
        patch.setattr(digest, "_digest", lambda tokens: calls.append(1) or real(tokens))
        known = Contents([opened(path)]).known()
    return bool(calls), known


def test_digest_covers_every_token_in_memory_and_in_files(file: Path, cache: Path) -> None:
    [expected] = Contents([VALUES]).known() or []
    assert len(expected) == 32
    assert Contents([opened(file)]).known() == [expected]
    seen = {expected}
    for index in (
        0,
        1,
        700_001,
        1_499_999,
    ):  # also far from the samples that the digest of the corpus covers
        changed = VALUES.copy()
        changed[index] ^= 1
        changed.tofile(file)
        seen.update(Contents([opened(file)]).known() or [])
    assert len(seen) == 5


def test_large_files_are_read_in_the_background(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "AT_ONCE", 1000)
    go_on = threading.Event()
    real = digest._digest
    monkeypatch.setattr(digest, "_digest", lambda tokens: go_on.wait(60) and real(tokens))
    contents = Contents([opened(file), VALUES[:9]])
    assert contents.known() is None
    contents.start()
    assert contents.known(0.05) is None
    go_on.set()
    assert contents.known(60) == [real(VALUES), real(VALUES[:9])]
    monkeypatch.setattr(digest, "AT_ONCE", 0)
    assert Contents([opened(file)]).known() == [real(VALUES)], "remembered: nothing is to be read"


def test_background_error_is_raised_to_the_caller_of_known(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "AT_ONCE", 1000)
    contents = Contents([opened(file)])
    os.truncate(file, 2_000_000)
    contents.start()
    with pytest.raises(InputError, match=r"a\.bin: the file was truncated"):
        contents.known(60)


def test_digest_is_cached_until_the_file_changes(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_again(file, monkeypatch)[0]
    is_read, known = read_again(file, monkeypatch)
    assert not is_read
    assert known == Contents([VALUES]).known()
    before = file.stat()
    with file.open("r+b") as content:
        content.seek(1000)
        content.write(b"\x01\x02")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # the ctime of the inode changes
    is_read, changed = read_again(file, monkeypatch)
    assert is_read and changed != known


def test_digest_of_a_just_written_file_is_not_cached(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change within the same tick of the file system clock would not be detected."""
    monkeypatch.setattr(digest, "_SETTLED", 60.0)
    assert [read_again(file, monkeypatch)[0] for _ in range(2)] == [True, True]


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"a": 3', b"\xff", b"[" * 100_000])
def test_corrupt_cache_is_ignored_and_replaced(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    assert [read_again(file, monkeypatch)[0] for _ in range(2)] == [True, False]
    [key] = entries = json.loads(cache.read_text())
    entries[key][-1] = "no digest"
    cache.write_text(json.dumps(entries))
    assert read_again(file, monkeypatch)[0]


def test_unwritable_cache_is_ignored(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.parent.write_text("a file in the place of the folder")
    assert [read_again(file, monkeypatch)[0] for _ in range(2)] == [True, True]
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", lambda: Path("~nobody-known").expanduser())
    assert read_again(file, monkeypatch)[0]
