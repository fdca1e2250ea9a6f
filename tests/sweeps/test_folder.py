"""Job directories of a sweep: created atomically under free names, and read."""

import os
from pathlib import Path

import pytest

from gpt2ckpt.errors import LockedError
from gpt2ckpt.runs.layout import JOBS
from gpt2ckpt.runs.lock import RunLock, is_locked
from gpt2ckpt.sweeps import folder, journal
from gpt2ckpt.sweeps.journal import JournalEntry, Status
from gpt2ckpt.sweeps.table import WIDTH, Row, table


def fill(temporary: Path, final: Path) -> None:
    (temporary / ".hydra").mkdir()
    (temporary / ".hydra" / "config.yaml").write_text(f"seed: 7\nname: {final.name}\n")
    (temporary / ".hydra" / "overrides.yaml").write_text("- seed=7\n- +resume=auto\n")


def test_taken_number_is_skipped_and_empty_directory_reused(tmp_path: Path) -> None:
    (tmp_path / "0" / "checkpoints").mkdir(parents=True)
    (tmp_path / "1").mkdir()
    assert folder.make_directory(tmp_path, 0, str, fill).directory == tmp_path / "1"
    assert folder.make_directory(tmp_path, 0, str, fill).directory == tmp_path / "2"


def test_taken_name_without_a_number_gets_one(tmp_path: Path) -> None:
    made = [folder.make_directory(tmp_path, 3, lambda _: "lr=1/a", fill) for _ in range(3)]
    assert [str(claim.directory.relative_to(tmp_path)) for claim in made] == [
        "lr=1/a",
        "lr=1/a_4",
        "lr=1/a_5",
    ]
    assert len(folder.read_jobs(tmp_path)) == 3


def test_half_created_directory_is_ignored(tmp_path: Path) -> None:
    (tmp_path / folder.NEW_DIRECTORY / ".hydra").mkdir(parents=True)
    assert folder.read_jobs(tmp_path) == []
    assert folder.make_directory(tmp_path, 0, str, fill).directory == tmp_path / "0"
    assert {path.name for path in tmp_path.iterdir()} == {"0"}


def test_new_directory_is_locked_before_its_rename(tmp_path: Path) -> None:
    def check_and_fill(temporary: Path, final: Path) -> None:
        assert is_locked(temporary) and not final.exists()
        fill(temporary, final)

    claim = folder.make_directory(tmp_path, 0, str, check_and_fill)
    with pytest.raises(LockedError, match=f"0 is being trained by process {os.getpid()} on"):
        RunLock(claim.directory)
    claim.lock.check_place()
    claim.lock.release()
    assert {path.name for path in claim.directory.iterdir()} == {".hydra"}


def test_job_without_a_checkpoint_is_matched_by_its_record(tmp_path: Path) -> None:
    folder.make_directory(tmp_path, 0, str, fill)
    [job] = folder.read_jobs(tmp_path)
    assert (job.config["seed"], job.overrides, job.step) == (7, ["seed=7"], None)
    (tmp_path / "0" / ".hydra" / "config.yaml").write_text("{")
    assert folder.read_jobs(tmp_path) == []


def test_latest_entry_of_each_job_of_a_launch(tmp_path: Path) -> None:
    for launch, status in (("a", Status.FAILED), ("b", Status.STARTED), ("b", Status.FINISHED)):
        journal.append(tmp_path, JournalEntry(launch, 0, status))
    with (tmp_path / JOBS).open("a") as file:
        file.write('{"launch": "b", "num')
    entries = journal.last_of_each(journal.read(tmp_path, "b"))
    assert [entry.status for entry in entries.values()] == [Status.FINISHED]


def test_table_fits_80_columns() -> None:
    label = " ".join(f"optimizer.some_long_key_{n}=0.123456" for n in range(5))
    lines = table(
        [Row("12", label, "failed", None, "no such file " * 20), Row("3", "a=1", "new", 2)]
    )
    assert max(map(len, lines)) <= WIDTH
    assert all(argument in "\n".join(lines) for argument in label.split())
    assert lines[-1].startswith("  ")
