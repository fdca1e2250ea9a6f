"""Checkpoint folders: the roles after saves, crashes between any two calls, and rollbacks."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import (
    NOON,
    flip_random_byte,
    largest_file,
    names_in,
    put,
    request,
    small_state,
    step_of,
    tensors_state,
    to_bytes,
)
from disk_model import DiskModel, Names, followed

from gpt2ckpt.checkpoint import format, names
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.newest_valid import find_valid
from gpt2ckpt.checkpoint.retention import Retention
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError

NOON_NAME = "emergency_step_{:06d}_20251106_120000.pt"
WITH_LINKS = pytest.mark.parametrize("links", [True, False], ids=["links", "copies"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints"
    path.mkdir()
    return path


def forbid_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


def inode(path: Path) -> int:
    return path.stat().st_ino


def steps_in(folder: Path) -> dict[str, int]:
    return {path.name: step_of(path) for path in Store(folder).files()}


def rewrite_same_size(path: Path, data: bytes) -> None:
    """Change the bytes of a file behind all its names."""
    with path.open("r+b") as file:
        file.write(data)


# ---------------------------------------------------------------- roles


@WITH_LINKS
def test_the_names_after_several_saves(
    folder: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        forbid_links(monkeypatch)
    put(folder, 250)
    put(folder, 400, best=True)
    put(folder, 500, regular=True, best=True)
    put(folder, 612, emergency=True)
    put(folder, 750, regular=True, epoch_ended=0)
    put(folder, 1_000_000)
    assert steps_in(folder) == {
        "latest.pt": 1_000_000,
        "latest_backup.pt": 750,
        "rolling_step_000750.pt": 750,
        "rolling_step_1000000.pt": 1_000_000,
        "rolling_last_backup.pt": 1_000_000,
        NOON_NAME.format(612): 612,
        "best_model.pt": 500,
        "best_model_backup.pt": 500,
        "best_model_previous.pt": 400,
        "epoch_00000.pt": 750,
    }
    assert names_in(folder) == {path.name for path in Store(folder).files()}, "leftovers"


def test_links_share_blocks_and_backups_do_not(folder: Path) -> None:
    put(folder, 100)
    put(folder, 200, regular=True, best=True, emergency=True, epoch_ended=3)
    sharing = ("rolling_step_000200.pt", NOON_NAME.format(200), "best_model.pt", "epoch_00003.pt")
    assert {inode(folder / name) for name in sharing} == {inode(folder / "latest.pt")}
    assert inode(folder / "latest_backup.pt") == inode(folder / "rolling_step_000100.pt")
    copies = ("latest.pt", "rolling_last_backup.pt", "best_model_backup.pt")
    assert len({inode(folder / name) for name in copies}) == 3


def test_a_save_writes_its_bytes_once_for_each_copy(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    real_write = os.write
    monkeypatch.setattr(
        os, "write", lambda fd, data: written.append(len(data)) or real_write(fd, data)
    )
    size = format.encode(small_state(100)).size
    put(folder, 100, regular=True, emergency=True, epoch_ended=0)
    assert sum(written) == 2 * size
    written.clear()
    put(folder, 200, best=True)
    assert sum(written) == 2 * size


def test_put_returns_the_file_of_the_state_itself(folder: Path) -> None:
    assert put(folder, 100).name == "rolling_step_000100.pt"
    assert put(folder, 200, best=True).name == "best_model.pt"
    assert put(folder, 300, emergency=True).name == NOON_NAME.format(300)


def test_foreign_files_are_left_alone(folder: Path) -> None:
    foreign = ("notes.txt", "my_best.pt", "rolling_step_1.pt", "latest.pt.bak", ".latest.pt.tmp")
    for name in foreign:
        (folder / name).write_text(f"mine: {name}")
    (folder / "plots").mkdir()
    (folder / "plots" / "rolling_step_000001.pt").write_text("mine")
    for step in range(1, 6):
        put(folder, step, keep=1, regular=True, emergency=True, best=True)
    Store(folder).roll_back_to(folder / "latest_backup.pt", 4, NOON)
    for name in foreign:
        assert (folder / name).read_text() == f"mine: {name}"
    assert (folder / "plots" / "rolling_step_000001.pt").read_text() == "mine"


# ---------------------------------------------------------------- failures and power losses

HISTORY: list[dict[str, Any]] = [
    {"regular": True},
    {"best": True},
    {"emergency": True},
    {"regular": True, "best": True, "epoch_ended": 0},
    {"regular": True, "emergency": True},
    {"best": True, "emergency": True},
    {"regular": True, "best": True},
]


@WITH_LINKS
def test_a_power_loss_between_any_two_calls_loses_nothing_saved(
    folder: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        forbid_links(monkeypatch)
    acknowledged, before = -1, set[str]()

    def check(on_disk: Names) -> None:
        mine = {name: inode.step for name, inode in on_disk.items() if names.role_of(name)}
        assert None not in mine.values(), "a name stands for bytes that are not on disk"
        newest = max((step for step in mine.values() if step is not None), default=-1)
        assert newest >= acknowledged
        if before - set(mine):
            assert newest == step, "deleted before the new state was durable"
            assert mine[names.LATEST] == step

    for step, reasons in enumerate(HISTORY):
        model = DiskModel(folder, check)
        with followed(model, monkeypatch):
            put(folder, step, keep=1, **reasons)
        acknowledged = step
        for on_disk in model.after_power_loss():
            assert on_disk == model.live, "not everything was durable when the save had ended"
            check(on_disk)
        before = {path.name for path in Store(folder).files()}


@WITH_LINKS
def test_power_loss_during_rollback_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        forbid_links(monkeypatch)
    for step in (100, 200, 300):
        put(folder, step, keep=3)
    chosen = folder / "rolling_step_000200.pt"

    def check(on_disk: Names) -> None:
        assert on_disk["latest.pt"].step in (200, 300)
        assert on_disk[chosen.name].step == 200
        archive = {path.name: step_of(path) for path in folder.glob("abandoned_*/*.pt")}
        for name in {"latest_backup.pt", "rolling_step_000300.pt"} - on_disk.keys():
            assert name in archive or name == "latest_backup.pt"

    with followed(DiskModel(folder, check), monkeypatch):
        Store(folder).roll_back_to(chosen, 200, NOON)
    assert step_of(folder / "latest.pt") == 200


def test_deletion_is_the_last_thing_and_after_the_sync(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, 100, keep=1)
    model = DiskModel(folder, check=lambda on_disk: None)
    with followed(model, monkeypatch):
        put(folder, 200, keep=1)
    deletion = model.calls.index(("unlink", "rolling_step_000100.pt"))
    assert model.calls[deletion + 1 :] == [("fsync", "checkpoints")]
    assert model.calls[deletion - 1] == ("fsync", "checkpoints")
    assert ("rename", "latest.pt") in model.calls[:deletion]


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_failure_at_any_call_leaves_every_old_state(
    folder: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    put(folder, 100, regular=True, best=True)
    put(folder, 200, regular=True, emergency=True)
    before = steps_in(folder)
    real, failures = getattr(os, call), 0
    for fail_at in range(1, 30):
        calls = 0

        def failing(*arguments: Any, _fail_at: int = fail_at, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == _fail_at:
                raise OSError(5, "the device failed")
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                put(folder, 300, keep=9, regular=True, best=True)
            except OSError:
                failures += 1
        after = steps_in(folder)
        moved = {"latest.pt", "latest_backup.pt", "rolling_last_backup.pt", *before} - {
            name for name in before if after[name] == before[name]
        }
        assert moved <= set(names._FIXED), "a file of a pool was changed"
        assert after[names.LATEST] in (200, 300)
        assert names_in(folder) == {path.name for path in Store(folder).files()}, "leftovers"
        assert {100, 200} <= {*after.values()}
    assert failures > 3


def test_a_file_that_reads_back_differently_is_not_saved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that loses a bit: what is read back is not what was meant."""
    put(folder, 100)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    real_fsync = os.fsync

    def lossy(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_file():
            flip_random_byte(path, seed=9)
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", lossy)
    with pytest.raises(CheckpointError, match="cannot be used"):
        put(folder, 200)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk_keeps_every_file(tiny_disk: Path) -> None:
    store, keep = Store(tiny_disk), Retention(9, 9)
    state = tensors_state(1, kilobytes=200)
    saved = 0
    with pytest.raises(OSError, match="No space left"):
        for step in range(1, 9):
            state["step"] = step
            store.put(format.encode(state), request(step), keep)
            saved = step
    assert saved == 3
    assert find_valid(tiny_disk, Role.LATEST).state.step >= saved
    assert {names.rolling(step) for step in range(1, saved + 1)} <= names_in(tiny_disk)
    assert all(step_of(path) for path in store.files())
    assert names_in(tiny_disk) == {path.name for path in store.files()}, "leftovers"


def test_a_file_that_may_not_grow_keeps_every_file(folder: Path) -> None:
    put(folder, 100)
    before = {path.name: inode(path) for path in folder.iterdir()}
    encoded = format.encode(tensors_state(200, kilobytes=200))
    with largest_file(100_000), pytest.raises(OSError, match="File too large"):
        Store(folder).put(encoded, request(200), Retention(1, 1))
    assert {path.name: inode(path) for path in folder.iterdir()} == before


@pytest.mark.parametrize("damaged", ["latest.pt", "best_model.pt"])
@WITH_LINKS
def test_a_damaged_old_state_does_not_stop_the_next_save(
    folder: Path, monkeypatch: pytest.MonkeyPatch, damaged: str, links: bool
) -> None:
    if not links:
        forbid_links(monkeypatch)
    put(folder, 100, regular=True, best=True)
    flip_random_byte(folder / damaged, seed=3)
    put(folder, 200, regular=True, best=True)
    assert step_of(folder / "latest.pt") == step_of(folder / "best_model.pt") == 200


# ---------------------------------------------------------------- find


def test_find_returns_state_of_role(folder: Path) -> None:
    put(folder, 100, regular=True, best=True)
    put(folder, 150, best=True)
    put(folder, 200, emergency=True)
    put(folder, 200, emergency=True)
    put(folder, 300)
    expected = {
        Role.LATEST: 300,
        Role.LATEST_BACKUP: 200,
        Role.BEST: 150,
        Role.BEST_PREVIOUS: 100,
        Role.EMERGENCY: 200,
        Role.ROLLING: 300,
    }
    for role, step in expected.items():
        found = find_valid(folder, role)
        assert (found.state.step, found.skipped) == (step, [])


def test_find_skips_damaged_files_and_reports_them(folder: Path) -> None:
    for step in (100, 200, 300):
        put(folder, step)
    flip_random_byte(folder / "latest.pt", seed=1)  # and rolling_step_000300.pt with it
    found = find_valid(folder, Role.LATEST)
    assert (found.path.name, found.state.step) == ("rolling_last_backup.pt", 300)
    assert [path.name for path, _ in found.skipped] == ["latest.pt"]
    assert str(folder / "latest.pt") in found.skipped[0][1]
    (folder / "rolling_last_backup.pt").write_bytes(b"")
    found = find_valid(folder, Role.LATEST)
    assert found.state.step == 200
    assert {path.name for path, _ in found.skipped} >= {"latest.pt", "rolling_step_000300.pt"}


def test_a_damaged_best_falls_back_to_a_best(folder: Path) -> None:
    put(folder, 100, best=True)
    put(folder, 200, regular=True, best=True)
    put(folder, 900)
    for damaged, expected in [
        ("best_model.pt", ("best_model_backup.pt", 200)),
        ("best_model_backup.pt", ("best_model_previous.pt", 100)),
        ("best_model_previous.pt", ("latest.pt", 900)),
    ]:
        flip_random_byte(folder / damaged, seed=2)
        found = find_valid(folder, Role.BEST)
        assert (found.path.name, found.state.step) == expected
    assert [path.name for path, _ in found.skipped][:3] == [
        *("best_model.pt", "best_model_backup.pt", "best_model_previous.pt")
    ]


def test_missing_role_is_an_error(folder: Path) -> None:
    put(folder, 100)
    for role in (Role.BEST, Role.EMERGENCY):
        with pytest.raises(CheckpointError, match=f"there is no {role} checkpoint in"):
            find_valid(folder, role)
    (folder / "latest.pt").unlink()  # as after a kill in the very first save
    assert find_valid(folder, Role.LATEST).state.step == 100


def test_folder_without_valid_file_is_an_error(folder: Path) -> None:
    for missing in (folder, folder / "nowhere"):
        with pytest.raises(CheckpointError, match="there is no checkpoint in"):
            find_valid(missing, Role.LATEST)
    put(folder, 100)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="no valid checkpoint is left") as caught:
        find_valid(folder, Role.LATEST)
    assert all(name in str(caught.value) for name in names_in(folder))


def test_the_newest_is_found_by_step_not_by_name_or_time(folder: Path) -> None:
    for step in (999_999, 1_000_000):
        put(folder, step, regular=True, emergency=True)
    for name in ("latest.pt", "rolling_last_backup.pt", "latest_backup.pt"):
        (folder / name).unlink()
    os.utime(folder / "rolling_step_999999.pt", (2e9, 2e9))
    for role in (Role.LATEST, Role.EMERGENCY, Role.ROLLING):
        assert find_valid(folder, role).state.step == 1_000_000


@pytest.mark.parametrize("seed", range(40))
def test_any_single_damage_is_survived(folder: Path, seed: int) -> None:
    put(folder, 100, regular=True, best=True)
    put(folder, 200, regular=True, emergency=True)
    paths = Store(folder).files()
    damaged = paths[seed % len(paths)]
    flip_random_byte(damaged, seed)
    wanted = {Role.LATEST: 200, Role.BEST: 100}
    for role, step in wanted.items():
        assert find_valid(folder, role).state.step == step
    with pytest.raises(CheckpointError, match=damaged.name):
        step_of(damaged)


# ---------------------------------------------------------------- going back


@WITH_LINKS
def test_rollback_archives_later_states(
    folder: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        forbid_links(monkeypatch)
    for step in (100, 200, 300, 400):
        put(folder, step, keep=9, regular=True, best=step in (100, 300))
    before = steps_in(folder)
    chosen = folder / "rolling_step_000200.pt"
    archive = Store(folder).roll_back_to(chosen, 200, NOON)
    assert archive == folder / "abandoned_20251106_120000"
    assert steps_in(archive) == {name: step for name, step in before.items() if step > 200}
    assert steps_in(folder) == {
        "latest.pt": 200,
        "best_model_previous.pt": 100,
        "rolling_step_000100.pt": 100,
        "rolling_step_000200.pt": 200,
    }
    assert names_in(folder) - {archive.name} == set(steps_in(folder))
    if links:
        assert inode(folder / "latest.pt") == inode(chosen)


def test_rollback_to_newest_state_changes_nothing(folder: Path) -> None:
    put(folder, 100)
    put(folder, 200)
    before = {path.name: inode(path) for path in folder.iterdir()}
    assert Store(folder).roll_back_to(folder / "latest.pt", 200, NOON) is None
    assert {path.name: inode(path) for path in folder.iterdir()} == before


def test_rollback_to_archived_state(folder: Path) -> None:
    for step in (100, 200, 300):
        put(folder, step, keep=9)
    store = Store(folder)
    first = store.roll_back_to(folder / "rolling_step_000100.pt", 100, NOON)
    assert first is not None
    put(folder, 250, keep=9)
    chosen = first / "rolling_step_000200.pt"
    second = store.roll_back_to(chosen, 200, NOON + timedelta(hours=1))
    assert second is not None
    assert steps_in(folder)["latest.pt"] == 200, "latest is what the run goes on from"
    assert step_of(chosen) == 200
    assert steps_in(second)["rolling_step_000250.pt"] == 250


def test_rollback_accepts_another_spelling_of_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, 100)
    put(folder, 200)
    monkeypatch.chdir(folder.parent)
    Store(folder).roll_back_to(Path("checkpoints/../checkpoints/rolling_step_000100.pt"), 100, NOON)
    assert step_of(folder / "latest.pt") == 100


def test_two_rollbacks_in_one_second_get_two_folders(folder: Path) -> None:
    store = Store(folder)
    archives = []
    for _ in range(2):
        put(folder, 100)
        put(folder, 200)
        archives.append(store.roll_back_to(folder / "rolling_step_000100.pt", 100, NOON))
    assert [archive.name for archive in archives if archive] == [
        *("abandoned_20251106_120000", "abandoned_20251106_120001")
    ]


def test_rollback_archives_damaged_later_files(folder: Path) -> None:
    for step in (100, 200):
        put(folder, step)
    damaged = folder / "rolling_step_000200.pt"
    rewrite_same_size(damaged, b"nothing that can be read")
    archive = Store(folder).roll_back_to(folder / "rolling_step_000100.pt", 100, NOON)
    assert archive is not None
    assert damaged.name in names_in(archive)
    assert not damaged.exists()
    assert step_of(folder / "latest.pt") == 100


def test_found_state_does_not_depend_on_file(folder: Path) -> None:
    put(folder, 100)
    state = find_valid(folder, Role.LATEST).state
    rewrite_same_size(folder / "latest.pt", bytes(len(to_bytes(small_state(100)))))
    assert torch.equal(state.model["wte"], small_state(100)["model"]["wte"])
