"""A run directory from somebody else may hold links: nothing is written where they lead."""

import os
from pathlib import Path

import pytest

from gpt2ckpt.checkpoint.reserve import RESERVE, Reserve
from gpt2ckpt.errors import InputError
from gpt2ckpt.files.durable import publish
from gpt2ckpt.runs.layout import RECORD
from gpt2ckpt.runs.lock import WRITTEN, RunLock, refuse_if_locked


@pytest.mark.parametrize("name", WRITTEN)
def test_a_link_that_a_run_would_write_through_is_refused(name: str, tmp_path: Path) -> None:
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious")
    run.mkdir()
    (run / name).symlink_to(victim)
    with pytest.raises(InputError, match=f"{name} is a symbolic link"):
        RunLock(run)
    assert victim.read_text() == "precious"
    (run / name).unlink()
    RunLock(run).release()


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_no_file_in_the_place_of_one_is_refused(name: str, tmp_path: Path) -> None:
    """A folder ended in another error, and a pipe was waited for."""
    path = tmp_path / name
    for make in (path.touch,) if name == RECORD else (path.mkdir, lambda: os.mkfifo(path)):
        make()
        with pytest.raises(InputError, match=rf"{name} is no (regular file|folder)"):
            RunLock(tmp_path)
        refuse_if_locked(tmp_path)
        assert list(tmp_path.iterdir()) == [path]
        if path.is_dir():
            path.rmdir()


def test_the_space_kept_for_an_emergency_is_not_taken_through_a_link(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "checkpoints"
    victim.write_text("precious")
    folder.mkdir()
    (folder / RESERVE).symlink_to(victim)
    assert Reserve(folder).hold(1 << 20) is not None
    (folder / RESERVE).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        publish(folder / "latest.pt", [b"state"], lambda path: None, spare=folder / RESERVE)
    assert victim.read_text() == "precious"
    assert list(folder.iterdir()) == []


def test_a_deeply_nested_label_is_no_crash(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / "run.lock").write_text("[" * 200_000)
        with pytest.raises(InputError, match="another process"):
            RunLock(tmp_path)
