"""`repair`: files with a valid copy are repaired, and second copies stay independent."""

import os
from pathlib import Path

import pytest
from tools_helpers import damage, same_blocks, save, tree

from gpt2ckpt.checkpoint.reading import check, read_meta
from gpt2ckpt.files import durable
from gpt2ckpt.runs.events import read_events
from gpt2ckpt.runs.lock import RunLock

MAIN = ("latest.pt", "rolling_step_000030.pt", "best_model.pt", "epoch_00002.pt")
COPIES = ("rolling_last_backup.pt", "best_model_backup.pt")


def valid_at(path: Path, step: int) -> bool:
    check(path)
    return bool(read_meta(path).step == step)


def set_aside(run: Path) -> dict[str, bytes]:
    [folder] = (run / "checkpoints").glob("corrupt_*")
    return tree(folder)


def test_repair_changes_nothing_in_a_valid_run(checkpoints, run) -> None:
    before = tree(run)
    done = checkpoints("repair", run)
    assert (done.code, done.out) == (0, f"{run}/checkpoints: nothing is corrupt\n")
    assert tree(run) == before


@pytest.mark.parametrize("at", [0.0, 0.01, 0.5, 0.9999], ids=["head", "meta", "tensor", "seal"])
def test_repair_restores_four_names_from_the_second_copy(at, checkpoints, run) -> None:
    folder = run / "checkpoints"
    damage(folder / "latest.pt", at)
    damaged = (folder / "latest.pt").read_bytes()
    done = checkpoints("repair", run)
    assert done.code == 0
    assert done.out.count(" repaired from ") == 4
    assert all(valid_at(folder / name, 30) for name in (*MAIN, *COPIES))
    assert set_aside(run) == dict.fromkeys(MAIN, damaged)
    # The four share their blocks again, and neither shares them with a second copy.
    assert same_blocks(*(folder / name for name in MAIN))
    assert len({(folder / name).stat().st_ino for name in ("latest.pt", *COPIES)}) == 3
    assert checkpoints("verify", run).code == 0
    corrupt, repaired = read_events(run)
    assert (corrupt["event"], repaired["event"]) == ("checkpoint_corrupt", "checkpoint_repaired")
    assert {*corrupt["files"]} == {*repaired["files"]} == {*MAIN} and repaired["source"] in COPIES


def test_failed_repair_is_recorded(checkpoints, run) -> None:
    path = run / "checkpoints" / "rolling_step_000010.pt"
    damage(path)
    assert checkpoints("repair", run).code == 1
    [event] = read_events(run)
    assert (event["event"], event["step"]) == ("checkpoint_corrupt", 10)
    assert path.name in event["files"] and "cannot be used" in event["reason"]


def test_repair_of_a_copied_folder_records_no_events(checkpoints, run) -> None:
    copied = (run / "checkpoints").rename(run.parent / "copied")
    damage(copied / "latest.pt")
    assert checkpoints("repair", copied).code == 0
    assert not (copied / "events.jsonl").exists()


@pytest.mark.parametrize("name", COPIES)
def test_repaired_second_copy_gets_its_own_blocks(name, checkpoints, run) -> None:
    folder = run / "checkpoints"
    damage(folder / name)
    assert checkpoints("repair", run).code == 0
    assert valid_at(folder / name, 30)
    inodes = [(folder / other).stat().st_ino for other in (*MAIN, *COPIES) if other != name]
    assert (folder / name).stat().st_ino not in inodes
    assert list(set_aside(run)) == [name]


def test_repair_of_both_second_copies(checkpoints, run) -> None:
    for name in COPIES:
        damage(run / "checkpoints" / name)
    assert checkpoints("repair", run).code == 0
    inodes = {(run / "checkpoints" / name).stat().st_ino for name in ("latest.pt", *COPIES)}
    assert len(inodes) == 3


def test_repair_without_a_copy_moves_nothing(checkpoints, run) -> None:
    folder = run / "checkpoints"
    damage(folder / "rolling_step_000010.pt")  # is epoch_00000.pt, too
    before = tree(folder)
    done = checkpoints("repair", run)
    assert done.code == 1
    assert done.out.count("NOT REPAIRED: there is no valid copy of it") == 2
    assert tree(folder) == before


def test_repair_with_copies_of_some_files(checkpoints, run) -> None:
    folder = run / "checkpoints"
    damage(folder / "rolling_step_000010.pt")
    damage(folder / "best_model.pt")
    done = checkpoints("repair", run)
    assert done.code == 1
    assert valid_at(folder / "best_model.pt", 30)
    assert sorted(set_aside(run)) == sorted(MAIN)


def test_another_state_of_the_same_step_is_not_a_copy(checkpoints, tmp_path) -> None:
    save(tmp_path, 10, regular=True)
    save(tmp_path, 10, {"saved_at": "2025-11-06T13:00:00.000+00:00"}, emergency=True)
    emergency = next((tmp_path / "checkpoints").glob("emergency*"))
    damage(emergency)
    assert checkpoints("repair", tmp_path).code == 1
    assert not list((tmp_path / "checkpoints").glob("corrupt_*"))


@pytest.mark.parametrize("name", ["rolling_step_000030.pt", *COPIES])
def test_unreadable_file_is_repaired_by_its_role(name, checkpoints, run) -> None:
    folder = run / "checkpoints"
    os.truncate(folder / name, 0)
    assert checkpoints("repair", run).code == 0
    assert valid_at(folder / name, 30)


def test_unreadable_older_file_of_a_pool_is_not_repaired(checkpoints, run) -> None:
    os.truncate(run / "checkpoints" / "rolling_step_000020.pt", 0)
    assert checkpoints("repair", run).code == 1


def test_repair_without_hard_links_makes_copies(checkpoints, run, monkeypatch) -> None:
    """os.link fails, as on a file system without hard links."""

    def no_links(*names: object) -> None:
        raise PermissionError(1, "no links")

    monkeypatch.setattr(durable.os, "link", no_links)
    folder = run / "checkpoints"
    damage(folder / "latest.pt")
    assert checkpoints("repair", run).code == 0
    assert all(valid_at(folder / name, 30) for name in MAIN)
    assert not same_blocks(folder / "latest.pt", folder / "best_model.pt")
    assert sorted(set_aside(run)) == sorted(MAIN)


def test_repair_of_a_live_run_names_its_process(checkpoints, run) -> None:
    damage(run / "checkpoints" / "latest.pt")
    before = tree(run / "checkpoints")
    with RunLock(run):
        done = checkpoints("repair", run)
    assert done.code == 1
    assert f"not repaired: {run} is being trained by process {os.getpid()}" in done.out
    assert tree(run / "checkpoints") == before


def test_repair_of_a_valid_live_run_exits_0(checkpoints, run) -> None:
    with RunLock(run):
        assert checkpoints("repair", run).code == 0


def test_archived_states_are_repaired_in_their_folder(checkpoints, run) -> None:
    folder = run / "checkpoints"
    aside = folder / "abandoned_20251106_130000"
    aside.mkdir()
    for name in ("rolling_step_000030.pt", "rolling_last_backup.pt"):
        (aside / name).write_bytes((folder / name).read_bytes())
    damage(aside / "rolling_step_000030.pt")
    assert checkpoints("repair", run).code == 0
    assert valid_at(aside / "rolling_step_000030.pt", 30)
    assert list(set_aside(run)) == ["abandoned_20251106_130000/rolling_step_000030.pt"]


def test_repair_on_a_failing_disk_changes_nothing(checkpoints, run, monkeypatch) -> None:
    def full(*names: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    damage(run / "checkpoints" / "latest.pt")
    monkeypatch.setattr(durable.os, "fsync", full)
    before = tree(run / "checkpoints")
    done = checkpoints("repair", run)
    assert done.code == 1
    assert "not repaired: No space left on device" in done.out
    after = tree(run / "checkpoints")
    assert {name: data for name, data in after.items() if "corrupt_" not in name} == before
