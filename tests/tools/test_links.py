"""`prune` and `repair` do not follow links out of a run."""

import os
import shutil
from pathlib import Path

import pytest
from tools_helpers import damage, save


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Checkpoints outside the run."""
    for step in (10, 20):
        save(tmp_path / "elsewhere", step)
    return tmp_path / "elsewhere" / "checkpoints"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", ["abandoned_20251106_120000", "corrupt_20251106_120000"])
def test_prune_does_not_empty_a_linked_archive_folder(
    name: str, elsewhere: Path, checkpoints, run
) -> None:
    damage(elsewhere / "rolling_step_000010.pt")
    before = content(elsewhere)
    (run / "checkpoints" / name).symlink_to(elsewhere)
    assert checkpoints("prune", run, "--abandoned", "--corrupt", "--yes").code == 0
    checkpoints("repair", run)
    assert content(elsewhere) == before
    assert checkpoints("list", run).code == 0


def test_linked_checkpoints_folder_is_skipped(elsewhere: Path, checkpoints, tmp_path) -> None:
    damage(elsewhere / "rolling_last_backup.pt")
    before = content(elsewhere)
    run = tmp_path / "outputs" / "gpt2_run_20251106_120000"
    run.mkdir(parents=True)
    (run / "checkpoints").symlink_to(elsewhere)
    newer = save(tmp_path / "outputs" / "gpt2_run_20251107_120000", 30)
    for arguments in (
        ("prune", run, "--keep-rolling", "0", "--yes"),
        ("prune", tmp_path / "outputs", "--keep-runs", "1", "--yes"),
        ("repair", run),
    ):
        done = checkpoints(*arguments)
        assert f"it is a symbolic link. Pass {elsewhere} instead" in done.out
        assert content(elsewhere) == before
    assert newer.exists()
    assert checkpoints("repair", elsewhere).code == 0, "a link that the user names is followed"
    assert content(elsewhere) != before


def test_repair_replaces_a_link_and_keeps_its_target(elsewhere: Path, checkpoints, run) -> None:
    outside = elsewhere / "rolling_step_000010.pt"
    damage(outside)
    before = content(elsewhere)
    for name in ("best_model_backup.pt", "rolling_step_000010.pt"):
        (run / "checkpoints" / name).unlink()
        (run / "checkpoints" / name).symlink_to(outside)
    checkpoints("repair", run)
    assert checkpoints("prune", run, "--keep-rolling", "1", "--yes").code == 0
    assert content(elsewhere) == before


def test_pipe_named_like_a_checkpoint_does_not_block(checkpoints, run) -> None:
    path = run / "checkpoints" / "latest.pt"
    path.unlink()
    os.mkfifo(path)
    assert "DAMAGED" in checkpoints("list", run).out
    done = checkpoints("show", path)
    assert (done.code, "is not a regular file" in done.err) == (1, True)
    shutil.rmtree(run)
