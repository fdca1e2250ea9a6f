"""Unreadable directories are reported, never treated as empty."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from unprivileged import unprivileged

from gpt2ckpt.files.permissions import access_error

ROOT = Path(__file__).parents[2]
RUN = "outputs/a_run_20260101_000000"
LOOK = """
import sys
from pathlib import Path
from gpt2ckpt.data.files import expand_files
from gpt2ckpt.errors import UserError
from gpt2ckpt.runs.claim import holds_run
from gpt2ckpt.runs.history import run_id_in
from gpt2ckpt.runs.lock import is_locked
from gpt2ckpt.runs.resume import Scope, locate
from gpt2ckpt.tools.targets import find_runs
from gpt2ckpt.tools.verify import run as verify
from argparse import Namespace

outputs, run = Path("outputs"), Path("outputs/a_run_20260101_000000")
looks = {
    "latest": lambda: locate("latest", Scope(outputs)),
    "auto": lambda: locate("auto", Scope(outputs)),
    "given": lambda: locate("auto", Scope(outputs, run)),
    "directory": lambda: locate(str(run), Scope(outputs)),
    "file": lambda: locate(str(run / "checkpoints" / "latest.pt"), Scope(outputs)),
    "claim": lambda: holds_run(run),
    "list": lambda: find_runs(None),
    "list run": lambda: find_runs(run),
    "verify": lambda: verify(Namespace(paths=[str(run)], json=False)),
    "data": lambda: expand_files("data.train", f"{run}/*.txt"),
    "data file": lambda: expand_files("data.train", f"{run}/a.txt"),
    "data below": lambda: expand_files("data.train", "outputs/**/*.txt"),
    "record": lambda: run_id_in(run),
}
for name, look in looks.items():
    try:
        print(f"{name}: {look()}")
    except (UserError, PermissionError) as error:
        print(f"{name}: {error}")
print("locked:", is_locked(run))
"""


@contextmanager
def closed(path: Path, mode: int = 0) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


def looked(cwd: Path) -> tuple[dict[str, str], str]:
    """Return the answer of each lookup, and the output on stderr."""
    done = subprocess.run(
        unprivileged([sys.executable, "-c", LOOK]),
        **{"cwd": cwd, "env": {"PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True},
    )
    assert done.returncode == 0, done.stderr
    lines = [line.partition(": ") for line in done.stdout.splitlines()]
    return {name: answer for name, _, answer in lines}, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoints = tmp_path / RUN / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "latest.pt").write_bytes(b"state")
    (tmp_path / RUN / ".history.json").write_text("{}")
    (tmp_path / RUN / "a.txt").write_text("text")
    return tmp_path


@pytest.mark.parametrize("name", ["outputs", RUN])
@pytest.mark.parametrize("mode", [0o000, 0o600])
def test_error_names_an_unreadable_directory(folder: Path, name: str, mode: int) -> None:
    with closed(folder / name, mode):
        answers, printed = looked(folder)
    locked = answers.pop("locked")
    listed = answers.pop("list") + printed
    assert "Permission denied" in listed and name in listed
    for way, answer in answers.items():
        assert "Permission denied" in answer and name in answer, (way, answer)
    assert locked == "True", "what cannot be looked into may live"


def test_error_names_an_unreadable_checkpoints_folder(folder: Path) -> None:
    with closed(folder / RUN / "checkpoints"):
        answers, printed = looked(folder)
    for way in ("latest", "auto", "given", "file", "claim", "list run", "verify"):
        assert f"{RUN}/checkpoints" in answers[way], (way, answers)
        assert "Permission denied" in answers[way], (way, answers)
    assert f"skipped {RUN}/checkpoints cannot be read (Permission denied)" in printed


def test_readable_and_missing_paths_have_no_access_error(folder: Path) -> None:
    for path in (folder, folder / "gone", folder / RUN / "a.txt"):
        assert access_error(path) is None


def test_verify_reports_an_unreadable_archive_folder(folder: Path) -> None:
    inner = folder / RUN / "checkpoints" / "abandoned_20260101_000000"
    inner.mkdir()
    with closed(inner):
        answers, _ = looked(folder)
    assert "Permission denied" in answers["verify"] and inner.name in answers["verify"]
