"""`list`: checkpoints with their roles and their space on disk."""

import json
import shutil
from pathlib import Path

import pytest
from tools_helpers import NOON, damage, make_run, save

from gpt2ckpt.checkpoint.store import Store


def listed(checkpoints, *arguments) -> list[dict]:
    done = checkpoints("list", *arguments, "--json")
    assert done.code == 0
    return json.loads(done.out)


def by_name(objects: list[dict]) -> dict[str, dict]:
    return {Path(item["path"]).name: item for item in objects}


def test_list_shows_groups_in_fixed_order(checkpoints, run) -> None:
    lines = checkpoints("list", run).out.splitlines()
    headings = [line for line in lines if line and not line.startswith(" ")]
    assert headings[0] == str(run)
    assert headings[1:-1] == ["latest", "best", "rolling", "emergency", "epoch"]
    names = [line.split()[0] for line in lines if ".pt" in line]
    assert sorted(names) == sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names[5:9] == [
        *("rolling_step_000010.pt", "rolling_step_000020.pt", "rolling_step_000030.pt"),
        "rolling_last_backup.pt",
    ]
    line = next(line for line in lines if "emergency_step" in line)
    assert line.split()[1:4] == ["25", "2", "4.2500"]


def test_list_fits_80_columns(checkpoints, tmp_path) -> None:
    save(tmp_path, 1_234_567, {"val_loss": 10.98765}, emergency=True, epoch_ended=12345)
    lines = checkpoints("list", tmp_path).out.splitlines()[1:]
    assert max(map(len, lines)) <= 80


def test_json_has_an_object_for_each_name_with_its_roles(checkpoints, run) -> None:
    objects = listed(checkpoints, run)
    assert len(objects) == len(list((run / "checkpoints").iterdir()))
    latest = by_name(objects)["latest.pt"]
    assert latest["roles"] == ["latest", "best", "rolling", "epoch"]
    assert {key: latest[key] for key in ("step", "epoch", "val_loss", "run_dir")} == {
        **{"step": 30, "epoch": 3, "val_loss": 4.2, "run_dir": str(run)},
    }
    assert latest["saved_at"] == "2025-11-06T12:30:00.000+00:00"
    assert latest["size_bytes"] == (run / "checkpoints" / "latest.pt").stat().st_size
    found = by_name(objects)
    assert found["best_model_previous.pt"]["roles"] == ["best_previous", "rolling", "epoch"]
    assert found["rolling_last_backup.pt"]["roles"] == ["rolling_last_backup"]
    assert found["latest_backup.pt"]["roles"] == ["latest_backup", "emergency"]
    assert all(item["error"] is None for item in objects)


def test_disk_space_counts_shared_blocks_once(checkpoints, run) -> None:
    folder = run / "checkpoints"
    stats = {path.stat().st_ino: path.stat() for path in folder.iterdir()}
    on_disk = sum(info.st_blocks * 512 for info in stats.values())
    assert len(stats) < len(list(folder.iterdir()))
    totals = checkpoints("list", run).out.splitlines()[-2]
    assert totals.startswith("13 checkpoints, ")
    assert totals.endswith(f"on disk they take {on_disk / 1000:.1f} KB")


def test_list_marks_damaged_files(checkpoints, run) -> None:
    emergency = next((run / "checkpoints").glob("emergency*"))
    emergency.write_bytes(b"")
    (run / "checkpoints" / "epoch_00007.pt").write_bytes(bytes(5000))
    out = checkpoints("list", run).out
    assert out.count("DAMAGED") == 3  # the emergency file is latest_backup.pt, too
    found = by_name(listed(checkpoints, run))
    assert found[emergency.name]["step"] is None
    assert "cannot be used" in found["epoch_00007.pt"]["error"]
    assert found["latest.pt"]["error"] is None


def test_list_reads_only_the_head_of_a_file(checkpoints, run) -> None:
    path = run / "checkpoints" / "best_model_backup.pt"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    damage(run / "checkpoints" / "latest.pt")
    objects = by_name(listed(checkpoints, run))
    assert objects[path.name]["step"] == 30
    assert objects["latest.pt"]["step"] == 30


def test_list_survives_metadata_of_wrong_types(checkpoints, tmp_path) -> None:
    odd = {"epoch": "two", "val_loss": [], "saved_at": 7, "reason": None}
    save(tmp_path, 5, odd)
    save(tmp_path, 6, {"val_loss": float("nan"), "saved_at": "yesterday"})
    assert checkpoints("list", tmp_path).code == 0
    found = by_name(listed(checkpoints, tmp_path))
    assert found["rolling_step_000005.pt"]["val_loss"] is None
    assert found["rolling_step_000006.pt"]["val_loss"] == "NaN"


def test_list_of_a_root_includes_jobs_of_sweeps(checkpoints, run, monkeypatch) -> None:
    root = run.parent
    for job in ("0", "1"):
        make_run(root / "gpt2_sweep_20251106_130000" / job)
    (root / "empty").mkdir()
    (root / "link").symlink_to(run)
    monkeypatch.chdir(root.parent)
    directories = {item["run_dir"] for item in listed(checkpoints)}
    assert directories == {
        *("outputs/gpt2_run_20251106_120000", "outputs/gpt2_sweep_20251106_130000/0"),
        "outputs/gpt2_sweep_20251106_130000/1",
    }
    assert checkpoints("list").out.splitlines()[-1].startswith("3 runs, 39 checkpoints, ")


@pytest.mark.parametrize("place", ["checkpoints", "", "checkpoints/abandoned_20251106_120000"])
def test_list_accepts_run_folder_and_archive_folder(place, checkpoints, run) -> None:
    Store(run / "checkpoints").roll_back_to(
        run / "checkpoints" / "rolling_step_000010.pt", 10, NOON
    )
    found = listed(checkpoints, run / place)
    assert {item["run_dir"] for item in found} == {str(run)}
    groups = [item["group"] for item in found]
    assert groups.count("abandoned") == 11
    assert all("latest" not in item["roles"] for item in found if item["group"] == "abandoned")
    assert "abandoned_20251106_120000\n" in checkpoints("list", run / place).out


def test_list_accepts_a_copied_checkpoints_folder(checkpoints, run, tmp_path) -> None:
    shutil.copytree(run / "checkpoints", tmp_path / "backup of it")
    assert len(listed(checkpoints, tmp_path / "backup of it")) == 13


def test_list_skips_files_of_other_programs(checkpoints, run) -> None:
    before = listed(checkpoints, run)
    (run / "checkpoints" / "notes.txt").write_text("x")
    (run / "checkpoints" / "mine.pt").write_bytes(b"x")
    assert listed(checkpoints, run) == before


def test_list_of_a_trained_run(checkpoints, real) -> None:
    found = by_name(listed(checkpoints, real))
    assert found["latest.pt"]["step"] == 8
    assert found["latest.pt"]["val_loss"] > 9
    assert found["best_model.pt"]["roles"][0] == "best"
