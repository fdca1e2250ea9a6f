"""Complete commands on a full disk, without hard links, or without the run directory."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import preload
import psutil
import pytest
from commands import events, finish, latest, opened, run, start, steps_done, succeed, wait_until
from real_disks import formatted, mounted

NEEDED = 3_000_000  # bytes, about: a model of two layers of 32 takes 0.4 MB, the margin 1 MB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """16 MiB."""
    yield from mounted(["-t", "tmpfs", "-o", "size=16m", "tmpfs"], tmp_path / "disk")


def fill(folder: Path, spare: int) -> Path:
    """Write a file that leaves `spare` bytes free."""
    path = folder / "somebody_elses.bin"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free - spare)
    return path


def test_run_is_refused_on_a_full_disk_and_survives_one_that_fills_up(
    token_data: Any, disk: Path
) -> None:
    overrides = [*token_data.overrides, "trainer.max_steps=60", "checkpoint.save_every=20"]
    others = fill(disk, spare=NEEDED // 4)
    refused = run("train", [*overrides, "hydra.run.dir=run"], disk)
    assert refused.code == 1
    assert "are free, and the first save" in refused.message and " MB" in refused.message
    assert sorted(path.name for path in disk.iterdir()) == [others.name], "something was written"
    sweep = run("train", ["-m", *overrides, "seed=1,2", "hydra.sweep.dir=sweep"], disk)
    assert sweep.code == 1
    table = " ".join((disk / "sweep" / "table.txt").read_text().split())
    assert table.count("are free, and the first save") == 2, "of each job"
    assert not list(disk.glob("sweep/*/checkpoints")), "a job began that cannot save"
    others.unlink()

    process = start("train", [*overrides, "hydra.run.dir=run"], disk)
    saves = disk / "run" / "checkpoints"
    wait_until(process, (saves / "rolling_step_000020.pt").exists)
    process.send_signal(signal.SIGSTOP)
    wait_until(process, lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    fill(disk, spare=0)
    process.send_signal(signal.SIGCONT)
    done = succeed(finish(process))
    assert "SAVE FAILED at step 60" in done.out and "checkpoints prune" in done.out
    [emergency] = saves.glob("emergency_step_000060_*.pt")
    assert opened(emergency)["reason"] == "the last save failed"
    assert latest(disk / "run")["step"] == 60, "the last steps were lost on a full disk"
    assert not list(saves.glob(".*")), "leftovers"
    assert [step for step, _ in events(disk / "run")] == list(range(1, 61))


def test_removed_run_directory_fails_saves_but_not_the_training(
    token_data: Any, tmp_path: Path
) -> None:
    """The directory is not created again, every save reports an error, and nothing is raised."""
    overrides = [*token_data.overrides, "trainer.max_steps=100000", "checkpoint.save_every=5"]
    process = start("train", [*overrides, "hydra.run.dir=run"], tmp_path)
    wait_until(process, lambda: steps_done(tmp_path / "run") >= 10)
    (tmp_path / "run").rename(tmp_path / "moved")
    there = len(events(tmp_path / "moved"))
    wait_until(process, lambda: len(events(tmp_path / "moved")) > there + 20)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130, done.err + done.out
    assert done.err == ""
    assert done.out.count("SAVE FAILED") >= 2 and "mkdir -p run/checkpoints" in done.out
    assert "the newest checkpoint is older" in done.out
    assert not (tmp_path / "run").exists()


def test_hanging_disk_blocks_neither_the_training_nor_its_end(
    token_data: Any, tmp_path: Path
) -> None:
    """fsync of checkpoints and metrics.jsonl hangs."""
    faults = preload.build(tmp_path)
    overrides = [*token_data.overrides, "trainer.max_steps=100000", "checkpoint.save_every=5"]
    overrides += ["checkpoint.hang_seconds=2", "hydra.run.dir=run"]
    process = start("train", overrides, tmp_path, faults.environment)
    run_directory = tmp_path / "run"
    wait_until(process, (run_directory / "checkpoints" / "latest.pt").exists)
    faults.set(("fsync", -3600, str(run_directory)))
    log = run_directory / "train.log"
    wait_until(process, lambda: "hangs: the disk under" in log.read_text())
    there = steps_done(run_directory)
    wait_until(process, lambda: steps_done(run_directory) > there + 10)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code == 130
    assert "is given up" in done.out or "SAVE FAILED" in done.out
    assert latest(run_directory)["step"] < there


def test_training_and_resume_work_without_hard_links(token_data: Any, tmp_path: Path) -> None:
    """On exFAT (FUSE) files of one state are copies."""
    for disk in formatted("exfat", tmp_path / "disk"):
        overrides = [*token_data.overrides, "trainer.max_steps=20", "checkpoint.save_every=10"]
        done = succeed(
            run("train", [*overrides, "trainer.eval_every=20", "hydra.run.dir=run"], disk)
        )
        assert "SAVE FAILED" not in done.out
        saves = disk / "run" / "checkpoints"
        assert {opened(path)["step"] for path in saves.glob("*.pt")} == {10, 20}
        assert all(path.stat().st_nlink == 1 for path in saves.glob("*.pt"))
        succeed(run("train", ["+resume=latest", "trainer.max_steps=25", "hydra.run.dir=run"], disk))
        assert latest(disk / "run")["step"] == 25
        succeed(run("checkpoints", ["verify", "run"], disk))
