"""The identity of the training code: a digest of its sources, and the git commit.

A checkpoint records both, because users edit a research repository between two starts. Git is
optional; a slow git command is abandoned.
"""

import os
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import gpt2ckpt
from gpt2ckpt.checkpoint.state import Versions
from gpt2ckpt.files.source_digest import source_digest as files_digest

TRAINS = ("data", "model", "optim", "parallel", "training")  # packages that affect the weights
PATIENCE = 3.0  # seconds that `git diff` may take
LIBRARIES = ("gpt2ckpt", "torch", "python")
SHOWN = 8  # digits of a digest or commit in a message


@cache
def code_identity() -> dict[str, Any]:
    """Return the identity of the code that this process runs, for a checkpoint.

    `code` is the digest; `commit` and `dirty` (uncommitted changes in tracked files) are None if
    they are not known.
    """
    package = Path(gpt2ckpt.__file__).resolve().parent
    commit = commit_of(package)
    return {
        "code": source_digest(package),
        "commit": commit,
        "dirty": has_changes(package) if commit else None,
    }


def source_digest(package: Path) -> str:
    """Return the digest of the paths and contents of the sources that train."""
    paths = [path for folder in TRAINS for path in (package / folder).rglob("*.py")]
    return files_digest(package, paths)


def commit_of(folder: Path) -> str | None:
    """Return the commit that is checked out in the repository of `folder`, from git's own files.

    Source: gitrepository-layout(5).
    """
    try:
        for parent in (folder, *folder.parents):
            if (parent / ".git").exists():
                return _head(parent / ".git")
    except (OSError, ValueError):
        pass
    return None


def _head(git: Path) -> str | None:
    if git.is_file():  # in a worktree or a submodule, .git is a file that names the directory
        git = git.parent / _text(git).removeprefix("gitdir:").strip()
    common = git / _text(git / "commondir") if (git / "commondir").is_file() else git
    head = _text(git / "HEAD")
    if not head.startswith("ref:"):
        return _commit(head)
    name = head.removeprefix("ref:").strip()
    for place in (git, common):
        if (place / name).is_file():
            return _commit(_text(place / name))
    if not (common / "packed-refs").is_file():
        return None
    lines = (line.split(" ", 1) for line in _text(common / "packed-refs").splitlines())
    return next((_commit(words[0]) for words in lines if words[1:] == [name]), None)


def _text(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(1 << 24).strip()


def _commit(text: str) -> str | None:
    is_hex = len(text) in (40, 64) and all(digit in "0123456789abcdef" for digit in text)
    return text if is_hex else None


def has_changes(folder: Path) -> bool | None:
    """Return whether tracked files in `folder` differ from the commit; None if unknown."""
    words = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), "diff"]
    words += ["--quiet", "--no-ext-diff", "--no-textconv", "--ignore-submodules", "HEAD", "--", "."]
    try:
        process = subprocess.Popen(
            words,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError:
        return None
    end = time.monotonic() + PATIENCE
    while process.poll() is None:
        if time.monotonic() > end:
            process.kill()  # without waiting for its end: a hanging file system would block that
            return None
        time.sleep(0.002)
    return {0: False, 1: True}.get(process.returncode)


def changed_code(now: Versions, before: Versions) -> str | None:
    """Return the change as `code 3f2a… (commit …, clean) → 9c1b… (…)`.

    None if the code is the same, or if the saved state does not record it.
    """
    if before.code in (None, now.code):
        return None
    return f"code {described(before)} → {described(now)}"


def changed_libraries(now: Versions, before: Versions) -> list[str]:
    """Return the libraries with a different version, as `torch 2.12.0 → 2.13.0`."""
    pairs = ((name, getattr(before, name), getattr(now, name)) for name in LIBRARIES)
    return [f"{name} {old} → {new}" for name, old, new in pairs if old and old != new]


def described(versions: Versions) -> str:
    """Return the recorded code identity as text."""
    state = "" if versions.dirty is None else ", dirty" if versions.dirty else ", clean"
    where = f"commit {versions.commit[:SHOWN]}{state}" if versions.commit else "no commit"
    return f"{str(versions.code)[:SHOWN]} ({where})"
