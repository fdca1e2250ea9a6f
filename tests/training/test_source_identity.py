"""The digest detects every edit of the training code; git is optional."""

import os
import shutil
import stat
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import gpt2ckpt
from gpt2ckpt.checkpoint.state import Versions
from gpt2ckpt.training import source_identity
from gpt2ckpt.training.source_identity import (
    TRAINS,
    changed_code,
    commit_of,
    described,
    has_changes,
    source_digest,
)

PACKAGE = Path(gpt2ckpt.__file__).resolve().parent
GIT = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a separate copy of the sources."""
    copy = tmp_path / "checkout" / "gpt2ckpt"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(
        ["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("folder", TRAINS)
def test_editing_training_code_changes_the_digest(package: Path, folder: str) -> None:
    before = source_digest(package)
    assert before == source_digest(PACKAGE)  # independent of the folder of the package
    file = min((package / folder).glob("[a-z]*.py"))
    file.write_text(file.read_text() + "\n")
    edited = source_digest(package)
    file.rename(file.with_name("another.py"))
    assert len({before, edited, source_digest(package)}) == 3


def test_digest_excludes_code_that_does_not_train(package: Path) -> None:
    before = source_digest(package)
    (package / "tools" / "show.py").write_text("")
    (package / "model" / "notes.txt").write_text("")
    (package / "model" / "gone.py").symlink_to("nowhere.py")
    assert source_digest(package) == before


@GIT
@pytest.mark.parametrize("packed", [False, True])
def test_commit_and_dirty_flag_agree_with_git(package: Path, packed: bool) -> None:
    root = package.parent
    assert commit_of(package) is None
    git(root, "init", "-q")
    assert (commit_of(package), has_changes(package)) == (None, None)  # nothing committed yet
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    if packed:
        git(root, "pack-refs", "--all")
    head = git(root, "rev-parse", "HEAD")
    assert (commit_of(package), has_changes(package)) == (head, False)
    git(root, "worktree", "add", "-q", str(root.parent / "second"))
    assert commit_of(root.parent / "second" / "gpt2ckpt") == head
    git(root, "checkout", "-q", "--detach")
    assert commit_of(package) == head
    (package / "model" / "gpt2.py").write_text("")
    assert has_changes(package) is True
    git(root, "add", ".")
    assert has_changes(package) is True
    assert has_changes(root.parent / "second" / "gpt2ckpt") is False


@pytest.mark.parametrize("content", ["", "ref: refs/heads/gone", "ref: ../../etc", "\0\xff", "12"])
def test_damaged_checkout_has_no_commit(package: Path, content: str) -> None:
    (package.parent / ".git").mkdir()
    (package.parent / ".git" / "HEAD").write_text(content)
    assert commit_of(package) is None
    assert has_changes(package) in (None, True, False)


@pytest.mark.parametrize("script", [None, "sleep 600", "exit 128"])
def test_hanging_failing_or_missing_git_is_not_waited_for(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    (tmp_path / "bin").mkdir()
    if script:
        (tmp_path / "bin" / "git").write_text(f"#!/bin/sh\nexec {script}\n")
        (tmp_path / "bin" / "git").chmod(stat.S_IRWXU)
    path = f"{tmp_path / 'bin'}:{os.defpath}" if script else str(tmp_path / "bin")
    monkeypatch.setenv("PATH", path)
    monkeypatch.setattr(source_identity, "PATIENCE", 0.2)
    begun = time.monotonic()
    assert has_changes(package) is None
    assert time.monotonic() - begun < 60


LIBRARIES = {"gpt2ckpt": "0.1.0", "torch": "2.13.0", "python": "3.11.7"}
KNOWN = {"code": "3f2a0000ffff", "commit": "ab" * 20, "dirty": False}
NOW = Versions(**LIBRARIES, **KNOWN)


@pytest.mark.parametrize(
    ("before", "reported"),
    [
        ({}, None),  # saved before checkpoints recorded the code
        ({"code": None}, None),
        ({**KNOWN, "commit": "cd" * 20, "dirty": True}, None),  # the same sources
        ({**KNOWN, "code": "9c1b0000"}, "code 9c1b0000 (commit abababab, clean) → 3f2a0000 (com"),
        ({"code": "9c1b0000"}, "code 9c1b0000 (no commit) → 3f2a0000 (commit abababab, clean)"),
    ],
)
def test_only_changed_code_is_reported(before: dict[str, Any], reported: str | None) -> None:
    found = changed_code(NOW, Versions(**LIBRARIES, **before))
    assert found is None if reported is None else str(found).startswith(reported)


def test_commit_without_dirty_flag_is_described() -> None:
    assert described(replace(NOW, dirty=None)) == "3f2a0000 (commit abababab)"
