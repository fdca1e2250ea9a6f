"""Tests of the state that `resume=WHAT` finds, among valid and damaged checkpoints."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from run_helpers import damage, save, tree

from gpt2ckpt.checkpoint.newest_valid import Found
from gpt2ckpt.errors import CheckpointError, ConfigError, InputError
from gpt2ckpt.runs.resume import SELECTORS, Place, Scope, locate, read


def find(what: str, given: Path | None = None, outputs: Path = Path("nowhere")) -> Found:
    place = locate(what, Scope(outputs, given))
    assert place is not None
    return read(place)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with every role: best at 2 and at 4, an emergency at 5, the newest at 6."""
    run = tmp_path / "gpt2_run_20251106_120000"
    save(run, 2, regular=True, best=True)
    save(run, 3, regular=True, epoch_ended=0)
    save(run, 4, best=True)
    save(run, 5, emergency=True)
    save(run, 6, regular=True)
    return run


@pytest.mark.parametrize(
    ("what", "step"),
    [
        *(("latest", 6), ("auto", 6), ("latest_backup", 5)),
        *(("best", 4), ("best_previous", 2), ("emergency", 5)),
    ],
)
def test_each_selector_finds_its_state(run: Path, what: str, step: int) -> None:
    for found in (find(what, given=run), find(what, outputs=run.parent)):
        assert found.state.step == step
        assert found.skipped == []
        assert found.path.parent == run / "checkpoints"


def test_selectors_are_those_of_the_contract() -> None:
    promised = {"latest", "best", "best_previous", "emergency", "latest_backup", "auto"}
    assert set(SELECTORS) == promised


def test_newest_emergency_has_the_highest_step(run: Path) -> None:
    save(run, 9, emergency=True)
    save(run, 7, emergency=True)
    assert find("emergency", given=run).state.step == 9


@pytest.mark.parametrize("inside", ["", "checkpoints"])
def test_run_directory_means_its_latest(run: Path, inside: str) -> None:
    assert find(str(run / inside)).state.step == 6


def test_file_means_itself_and_its_run(run: Path) -> None:
    path = run / "checkpoints" / "epoch_00000.pt"
    place = locate(str(path), Scope(run.parent))
    assert place == Place(run, file=path, in_run=True)
    assert read(place).state.step == 3


def test_archived_file_belongs_to_its_run(run: Path) -> None:
    archive = run / "checkpoints" / "abandoned_20251106_120000"
    archive.mkdir()
    shutil.copy(run / "checkpoints" / "best_model.pt", archive)
    place = locate(str(archive / "best_model.pt"), Scope(run.parent))
    assert place is not None
    assert (place.directory, place.in_run) == (run, True)


def test_file_outside_of_a_run_starts_a_new_run(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(run / "checkpoints" / "latest.pt", tmp_path / "kept.pt"))
    place = locate(str(copy), Scope(tmp_path))
    assert place is not None
    assert not place.in_run
    assert read(place).state.step == 6
    damage(copy)
    with pytest.raises(CheckpointError, match=r"kept\.pt cannot be used: the tensor model\.weight"):
        read(place)


def test_home_directory_is_expanded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run.parent))
    assert find(f"~/{run.name}").state.step == 6


def test_resume_skips_and_names_a_damaged_latest(run: Path) -> None:
    latest = run / "checkpoints" / "latest.pt"  # its blocks are those of rolling_step_000006.pt
    damage(latest)
    before = tree(run)
    found = find("latest", given=run)
    assert found.state.step == 6  # the independent copy
    assert found.path.name == "rolling_last_backup.pt"
    skipped = {path.name: reason for path, reason in found.skipped}
    assert "the tensor model.weight is damaged" in skipped["latest.pt"]
    damage(run / "checkpoints" / "rolling_last_backup.pt")
    assert find("latest", given=run).state.step == 5
    assert before.keys() == tree(run).keys()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.2, 0.8, 0.95, 0.99, 0.9999])
def test_resume_skips_a_file_with_a_flipped_bit(run: Path, share: float) -> None:
    damage(run / "checkpoints" / "latest.pt", share)
    found = find("latest", given=run)
    assert found.state.step == 6
    assert found.path.name == "rolling_last_backup.pt"
    assert "latest.pt" in {path.name for path, _ in found.skipped}


def test_damaged_best_is_replaced_by_its_backup_then_the_previous_best(run: Path) -> None:
    folder = run / "checkpoints"
    damage(folder / "best_model.pt")
    found = find("best", given=run)
    assert (found.path.name, found.state.step) == ("best_model_backup.pt", 4)
    damage(folder / "best_model_backup.pt")
    assert find("best", given=run).path.name == "best_model_previous.pt"


def test_newest_state_replaces_a_damaged_file_that_was_named(run: Path) -> None:
    path = run / "checkpoints" / "epoch_00000.pt"
    path.write_bytes(path.read_bytes()[:-100])
    found = find(str(path))
    assert found.state.step == 6
    assert [skipped for skipped, _ in found.skipped] == [path]


def test_half_written_and_foreign_files_are_skipped(run: Path) -> None:
    folder = run / "checkpoints"
    (folder / ".latest.pt.host-1-00000000.tmp").write_bytes(b"half")
    (folder / "notes.pt").write_bytes(b"the user's")
    (folder / "latest.pt").write_bytes(b"")
    found = find("latest", given=run)
    assert found.state.step == 6
    assert [path.name for path, _ in found.skipped] == ["latest.pt"]


def test_error_names_every_file_if_none_is_valid(tmp_path: Path) -> None:
    run = tmp_path / "gpt2_run_20251106_120000"
    save(run, 3, emergency=True)
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"PK" + b"\0" * 100)
    before = tree(run)
    with pytest.raises(CheckpointError, match="no valid checkpoint is left") as raised:
        find("latest", given=run)
    for path in (run / "checkpoints").iterdir():
        assert path.name in str(raised.value)
    assert tree(run) == before


def test_auto_starts_a_new_run_only_without_checkpoints(tmp_path: Path) -> None:
    empty = tmp_path / "gpt2_run_20251106_120000"
    for outputs in (tmp_path / "missing", tmp_path):
        assert locate("auto", Scope(outputs)) is None
    (empty / "checkpoints").mkdir(parents=True)
    assert locate("auto", Scope(tmp_path, empty)) is None
    (empty / "checkpoints" / "latest.pt").write_bytes(b"damaged")
    place = locate("auto", Scope(tmp_path, empty))
    assert place is not None
    with pytest.raises(CheckpointError):  # never silently from step 0 over a damaged run
        read(place)


def test_missing_checkpoint_is_reported_with_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "empty_run_20251106_120000").mkdir(parents=True)
    for given, outputs, reason in (
        (
            None,
            Path("gone"),
            f"gone, since {Path.cwd()}/gone does not exist: run the command in the directory where",
        ),
        (
            None,
            tmp_path / "empty_run_20251106_120000",
            "120000 holds no run: run the command in the directory where",
        ),
        (None, tmp_path, f"{tmp_path} holds no run: run the command in the directory where"),
        (Path("gone"), tmp_path, f"gone ({Path.cwd()}/gone): name a run directory"),
        (tmp_path, tmp_path, f"{tmp_path}: name a run directory or a checkpoint file with resume="),
    ):
        with pytest.raises(CheckpointError) as raised:
            locate("latest", Scope(outputs, given))
        assert str(raised.value).startswith("there is no checkpoint in ")
        assert reason in str(raised.value)
        assert "resume=PATH, or leave resume out" in str(raised.value)
    with pytest.raises(CheckpointError, match=r"ckpt=PATH$"):
        locate("best", Scope(tmp_path), key="ckpt")
    with pytest.raises(CheckpointError, match="there is no such file or directory"):
        locate(str(tmp_path / "gone.pt"), Scope(tmp_path))
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        find(str(tmp_path))


@pytest.mark.parametrize(
    ("word", "hint"),
    [("lates", "Did you mean latest?"), ("bst", "Did you mean best?"), ("newest", "none of")],
)
def test_misspelt_selector_suggests_the_nearest(tmp_path: Path, word: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        locate(word, Scope(tmp_path))
    assert hint in str(raised.value)
    assert f"resume={word}" in str(raised.value)


def test_empty_selector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resume is empty"):
        locate(" ", Scope(tmp_path))


@pytest.mark.parametrize("reasons", [{"regular": True}, {"emergency": True}, {"epoch_ended": 1}])
def test_save_killed_before_it_became_latest_is_the_latest(
    run: Path, reasons: dict[str, Any]
) -> None:
    """The folder as it is between two operations of a save; file times do not count."""
    folder = run / "checkpoints"
    before = (folder / "latest.pt").read_bytes()
    newest = save(run, 8, **reasons)
    (folder / "latest.pt").unlink()
    (folder / "latest.pt").write_bytes(before)
    (folder / "rolling_last_backup.pt").unlink()
    found = find("latest", given=run)
    assert (found.path, found.state.step, found.skipped) == (newest, 8, [])
    damage(newest)
    found = find("latest", given=run)
    assert (found.path.name, found.state.step) == ("latest.pt", 6)
    assert [path for path, _ in found.skipped] == [newest]


def test_later_file_of_another_run_is_not_the_latest(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save(other, 9, owner={"id": "ffffffff", "name": "gpt2", "parent": None})
    shutil.copy(other / "checkpoints" / "rolling_step_000009.pt", run / "checkpoints")
    assert find("latest", given=run).state.step == 6


@pytest.mark.parametrize("what", ["auto", "latest"])
@pytest.mark.parametrize(
    "name", ["of_another_tool.pt", "abandoned_20251106_120000/latest.pt", "corrupt_1/latest.pt"]
)
def test_auto_does_not_start_a_new_run_over_unusable_checkpoints(
    tmp_path: Path, what: str, name: str
) -> None:
    path = tmp_path / "run" / "checkpoints" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PK")
    before = tree(tmp_path)
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        find(what, given=tmp_path / "run")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["a file", "a link to a disk that is not mounted"])
def test_auto_does_not_start_a_new_run_over_an_unreadable_folder(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "checkpoints"
    if kind == "a file":
        folder.write_bytes(b"")
    else:
        folder.symlink_to(tmp_path / "not_mounted")
    for what in ("auto", "latest"):
        with pytest.raises(InputError, match="checkpoints cannot be read"):
            locate(what, Scope(tmp_path, tmp_path))
