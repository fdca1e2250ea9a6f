"""A run directory from somebody else may hold links: nothing is written where they lead."""

from pathlib import Path

import pytest

from gpt2ckpt.errors import InputError
from gpt2ckpt.runs.lock import WRITTEN, RunLock


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


def test_a_deeply_nested_label_is_no_crash(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        (tmp_path / "run.lock").write_text("[" * 200_000)
        with pytest.raises(InputError, match="another process"):
            RunLock(tmp_path)
