"""Tests that the newest run is found by the times that runs record."""

import json
import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from run_helpers import damage, frozen_of, save

from gpt2ckpt.checkpoint.state import RunIdentity
from gpt2ckpt.errors import CheckpointError, InputError
from gpt2ckpt.runs.history import start_history
from gpt2ckpt.runs.newest import SWEEP_JOB, behind, last_trained, newest_run, read_record
from gpt2ckpt.runs.resume import Scope, locate, read, skipped_runs

MORNING, NOON, EVENING = (f"2025-11-06T{hour}:00:00.000+00:00" for hour in ("08", "12", "20"))


def make(run: Path, saved_at: str, name: str = "gpt2", step: int = 2) -> Path:
    owner = {"id": "1a2b3c4d", "name": name, "parent": None}
    save(run, step, saved_at=saved_at, owner=owner)
    return run


def log_step(run: Path, moment: str) -> None:
    run.mkdir(parents=True, exist_ok=True)
    event = {"step": 1, "time": datetime.fromisoformat(moment).timestamp(), "train_loss": 4.0}
    (run / "metrics.jsonl").write_text(json.dumps(event) + "\n{torn")


def test_newest_run_is_found_by_its_record_not_by_name_or_file_times(tmp_path: Path) -> None:
    make(tmp_path / "gpt2_run_20991231_000000", MORNING)
    make(tmp_path / "mine", EVENING)
    make(tmp_path / "deep" / "er", NOON)
    copied = make(tmp_path / "copied_run_20251107_000000", MORNING)
    for path in [copied, *copied.rglob("*")]:
        os.utime(path, (2e9, 2e9))
    assert newest_run(tmp_path).directory == tmp_path / "mine"
    assert newest_run(tmp_path).skipped == []
    place = locate("best", Scope(tmp_path))
    assert place is not None and place.directory == tmp_path / "mine"


def test_newest_run_does_not_depend_on_the_time_zone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(tmp_path / "a_run_20251106_230000", "2025-11-06T23:00:00+09:00")
    second = make(tmp_path / "b_run_20251106_150000", "2025-11-06T15:00:00+00:00")
    assert first < second
    assert newest_run(tmp_path).directory == second


def test_newest_of_several_checkpoints_counts(tmp_path: Path) -> None:
    """A kill may come between a save and its name latest.pt."""
    first, second = make(tmp_path / "a", NOON), make(tmp_path / "b", MORNING)
    before = (second / "checkpoints" / "latest.pt").read_bytes()
    save(second, 4, saved_at=EVENING)
    (second / "checkpoints" / "latest.pt").unlink()
    (second / "checkpoints" / "latest.pt").write_bytes(before)
    assert newest_run(tmp_path).directory == second
    for path in (second / "checkpoints").glob("*rolling*"):
        path.unlink()
    assert newest_run(tmp_path).directory == first


def test_step_logged_after_the_last_save_counts(tmp_path: Path) -> None:
    """The run resumed from an older state and died before its next save."""
    make(tmp_path / "a", NOON)
    log_step(make(tmp_path / "b", MORNING), EVENING)
    assert newest_run(tmp_path).directory == tmp_path / "b"


def test_newer_runs_without_a_checkpoint_are_skipped_and_reported(
    tmp_path: Path,
) -> None:
    log_step(tmp_path / "old", MORNING)
    run = make(tmp_path / "mine", NOON)
    assert newest_run(tmp_path).skipped == []
    log_step(tmp_path / "debug", EVENING)
    place = locate("latest", Scope(tmp_path))
    assert place is not None
    assert read(place).skipped == [(tmp_path / "debug", "it holds no checkpoint")]
    (tmp_path / "begun").mkdir()
    start_history(tmp_path / "begun", RunIdentity("1", "x"), frozen_of(()))
    assert newest_run(tmp_path).directory == run
    [(_, reason)] = newest_run(tmp_path).skipped
    assert reason == "it holds no checkpoint; 1 other newer run skipped, too"
    shutil.rmtree(run)
    assert locate("auto", Scope(tmp_path)) is None
    with pytest.raises(CheckpointError, match=r"holds no run with a checkpoint \(.*debug: it hol"):
        locate("latest", Scope(tmp_path))


def test_damaged_newest_run_is_not_replaced_by_an_older_run(
    tmp_path: Path,
) -> None:
    make(tmp_path / "whole", MORNING)
    damaged = make(tmp_path / "damaged", NOON)
    log_step(damaged, NOON)
    for path in (damaged / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    assert newest_run(tmp_path).directory == damaged
    place = locate("auto", Scope(tmp_path))
    assert place is not None
    with pytest.raises(CheckpointError, match="no valid checkpoint is left in"):
        read(place)
    (damaged / "metrics.jsonl").unlink()  # nothing says how old it is
    found = newest_run(tmp_path)
    assert found.directory == tmp_path / "whole"
    assert found.skipped == [(damaged, "no checkpoint in it can be read")]


def test_copy_of_a_run_does_not_replace_the_original(tmp_path: Path) -> None:
    run = make(tmp_path / "gpt2_run_20251106_120000", NOON)
    shutil.copytree(run, tmp_path / "zcopy")
    (tmp_path / "zlink").symlink_to(run)
    assert newest_run(tmp_path).directory == run


def test_only_runs_of_the_given_name_count(tmp_path: Path) -> None:
    """Two jobs with different names used to take over each other's run."""
    alpha = make(tmp_path / "alpha_run_20251106_080000", MORNING, "alpha")
    make(tmp_path / "mine", NOON, "beta")
    log_step(tmp_path / "unsaved", EVENING)
    (tmp_path / "unsaved" / ".hydra").mkdir()
    (tmp_path / "unsaved" / ".hydra" / "config.yaml").write_text(
        "model:\n  name: x\nname: 'beta'\n"
    )
    place = locate("latest", Scope(tmp_path, name="alpha"))
    assert place is not None and (place.directory, place.skipped) == (alpha, ())
    assert newest_run(tmp_path, "beta").skipped[0][0] == tmp_path / "unsaved"
    assert locate("auto", Scope(tmp_path, name="gamma")) is None
    with pytest.raises(CheckpointError) as raised:
        locate("latest", Scope(tmp_path, name="gamma"))
    assert f"of a run with name=gamma in {tmp_path}" in str(raised.value)
    assert f"the newest run there, {tmp_path / 'mine'}, has name=beta" in str(raised.value)
    given = locate("latest", Scope(tmp_path, tmp_path / "mine", "alpha"))
    assert given is not None and given.directory == tmp_path / "mine"  # a directory is a name, too


def test_jobs_of_sweeps_count_except_for_auto(tmp_path: Path) -> None:
    single = make(tmp_path / "gpt2_run_20251106_080000", MORNING)
    job = make(tmp_path / "gpt2_sweep_20251106_120000" / "lr=1" / "0", NOON)
    (tmp_path / "gpt2_sweep_20251106_120000" / "jobs.jsonl").touch()
    found = [locate(what, Scope(tmp_path)) for what in ("latest", "best", "auto")]
    assert [place and place.directory for place in found] == [job, job, single]
    assert [place and place.skipped for place in found] == [(), (), ((job, SWEEP_JOB),)]
    make(tmp_path / "gpt2_run_20251106_200000", EVENING)
    later = locate("auto", Scope(tmp_path))
    assert later and later.skipped == ()  # the job is older than the run that is resumed
    assert skipped_runs(Scope(tmp_path, name="gamma")) == []


def test_auto_reports_the_job_of_a_sweep_that_it_skips(
    tmp_path: Path,
) -> None:
    job = make(tmp_path / "sweep" / "0", NOON)
    make(tmp_path / "sweep" / "1", MORNING)
    (tmp_path / "sweep" / "jobs.jsonl").touch()
    assert locate("auto", Scope(tmp_path)) is None
    assert skipped_runs(Scope(tmp_path)) == [(job, SWEEP_JOB)]


def test_run_started_after_the_clock_was_set_back_is_newest(tmp_path: Path) -> None:
    make(tmp_path / "first", EVENING)
    second = tmp_path / "second"
    now = datetime.fromisoformat(NOON)
    follows = behind(second, now)
    assert follows is not None and follows > datetime.fromisoformat(EVENING)
    assert behind(second, datetime.fromisoformat("2026-01-01T00:00:00+00:00")) is None
    make(second, MORNING)
    start_history(second, RunIdentity("2", "x"), frozen_of(()), follows)
    assert newest_run(tmp_path).directory == second
    assert last_trained(second, second / "checkpoints") == follows


@pytest.mark.parametrize("record", [b"", b"[]", b"{", b'{"follows": 3}', b"[" * 9999, b"\xff"])
def test_unreadable_record_is_ignored(tmp_path: Path, record: bytes) -> None:
    run = make(tmp_path / "mine", NOON)
    for name in ("metrics.jsonl", ".history.json"):
        (run / name).write_bytes(record)
    assert read_record(run).trained == datetime.fromisoformat(NOON)


def test_directory_name_counts_if_a_checkpoint_has_no_time(tmp_path: Path) -> None:
    run = tmp_path / "gpt2_run_20251106_120000"
    save(run, 2)
    assert read_record(run).trained == datetime(2025, 11, 6, 12).astimezone()
    damage(run / "checkpoints" / "latest.pt", 0.01)
    assert read_record(run).name == "gpt2"


def test_unreadable_folder_is_not_skipped_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an unmounted disk, neither a new run nor an older one may start."""
    run = make(tmp_path / "gpt2_run_20251106_120000", NOON)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").symlink_to(tmp_path / "unmounted")
    log_step(run, NOON)
    with pytest.raises(InputError, match="cannot be read"):
        locate("auto", Scope(tmp_path))


def test_folder_with_one_run_means_that_run(tmp_path: Path) -> None:
    run = make(tmp_path / "outputs" / "mine", NOON)
    place = locate(str(tmp_path / "outputs"), Scope(tmp_path))
    assert place is not None and place.directory == run
    kept = tmp_path / "kept"
    shutil.copytree(run / "checkpoints", kept)
    place = locate(str(kept), Scope(tmp_path))
    assert place is not None and not place.in_run
    assert read(place).path == kept / "latest.pt"
    (run / "checkpoints" / "abandoned_20251106_120000").mkdir()
    with pytest.raises(
        CheckpointError, match="holds archived or quarantined files of a run: name one of them"
    ):
        locate(str(run / "checkpoints" / "abandoned_20251106_120000"), Scope(tmp_path))
    make(tmp_path / "outputs" / "other", NOON)
    with pytest.raises(CheckpointError, match="holds 2 runs: name one of them"):
        locate(str(tmp_path / "outputs"), Scope(tmp_path))


def test_newest_run_reads_no_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpt2ckpt.checkpoint import format, reading

    for number in range(30):
        make(tmp_path / f"run_{number}", f"2025-11-06T12:{number:02}:00+00:00")
    read_bytes: list[Any] = []
    real = format.read_meta
    monkeypatch.setattr(reading.format, "read_meta", lambda f: read_bytes.append(f) or real(f))
    monkeypatch.setattr(reading.format, "load", lambda file: pytest.fail("a tensor was read"))
    assert newest_run(tmp_path).directory == tmp_path / "run_29"
    assert len(read_bytes) <= 3 * 30
