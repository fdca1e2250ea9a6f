"""Complete commands while a preloaded library makes system calls fail."""

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import preload
import pytest
from commands import (
    Done,
    environment,
    events,
    finish,
    latest,
    start,
    steps_done,
    succeed,
    wait_until,
)
from preload import EINVAL, EIO

from tests import forkserver

ENOSPC, EACCES = errno.ENOSPC, errno.EACCES


@pytest.fixture
def faults(tmp_path: Path) -> preload.Faults:
    folder = tmp_path / "faults"
    folder.mkdir()
    return preload.build(folder)


def faulty(faults: preload.Faults, name: str, overrides: list[str], cwd: Path) -> Done:
    return finish(start(name, overrides, cwd, faults.environment))


def test_training_succeeds_if_disk_space_cannot_be_measured(
    token_data: Any, tmp_path: Path, faults: preload.Faults
) -> None:
    """The disk report, the check before each save and the final summary still work."""
    (tmp_path / "run" / "notes").mkdir(parents=True)
    faults.set(("statvfs", EIO, "run"), ("opendir", EACCES, "notes$"))
    overrides = [*token_data.overrides, "trainer.max_steps=12", "checkpoint.save_every=1"]
    done = succeed(faulty(faults, "train", [*overrides, "hydra.run.dir=run"], tmp_path))
    assert "disk: the run takes " in done.out
    assert done.out.count("free space not known") == 3, "at the start, in between, at the end"
    assert latest(tmp_path / "run")["step"] == 12


def start_spoiled(overrides: list[str], cwd: Path, faults: preload.Faults) -> forkserver.Forked:
    """Start a run in which a weight becomes infinite after step 9, so that it rolls back."""
    program = str(Path(__file__).with_name("spoiled.py"))
    everything = {**faults.environment, **environment()}
    return forkserver.start(program, [*overrides, "trainer.on_bad_loss=rollback"], cwd, everything)


def test_kill_resume_rollback_and_prepare_work_without_directory_fsync(
    token_data: Any, tmp_path: Path, faults: preload.Faults
) -> None:
    run_dir = tmp_path / "run"
    faults.set(("fsync", EINVAL, "run$"), ("fsync", EINVAL, "checkpoints$"))
    overrides = [*token_data.overrides, "checkpoint.save_every=5", "hydra.run.dir=run"]
    overrides.append("checkpoint.save_epochs=false")
    killed = start_spoiled([*overrides, "trainer.max_steps=100000"], tmp_path, faults)
    wait_until(killed, lambda: steps_done(run_dir) > 22)
    killed.kill()
    out, err = killed.communicate()
    assert "from step 9 back to step 5" in out, err
    resumed = ["hydra.run.dir=run", "+resume=latest", "trainer.max_steps=100000"]
    again = start("train", resumed, tmp_path, faults.environment)
    before = steps_done(run_dir)
    wait_until(again, lambda: steps_done(run_dir) > before + 5)
    again.send_signal(signal.SIGTERM)
    assert finish(again).code == 143
    faults.set(("fsync", EINVAL, "shards$"))
    (tmp_path / "prose.txt").write_text("The quick brown fox. " * 400)
    shards = ["data=text", "data.train=prose.txt", "out=shards"]
    assert " shards in shards" in succeed(faulty(faults, "prepare", shards, tmp_path)).out


def test_rollback_succeeds_on_a_full_disk_and_completes_later(
    token_data: Any, tmp_path: Path, faults: preload.Faults
) -> None:
    """The files are changed when the disk has space again, without losing events."""
    run_dir, log = tmp_path / "run", tmp_path / "run" / "train.log"
    overrides = [*token_data.overrides, "checkpoint.save_every=5", "trainer.max_steps=20000"]
    overrides += ["trainer.eval_every=8", "trainer.eval_steps=1", "checkpoint.save_epochs=false"]
    history = [("write", ENOSPC, "metrics.jsonl"), ("ftruncate", ENOSPC, "metrics.jsonl")]
    faults.set(*history, ("open", ENOSPC, ".metrics.jsonl."), ("mkdir", ENOSPC, "abandoned_"))
    process = start_spoiled([*overrides, "hydra.run.dir=run"], tmp_path, faults)
    wait_until(process, lambda: log.exists() and "the next save tries again" in log.read_text())
    assert events(run_dir) == []
    process.send_signal(signal.SIGUSR1)
    wait_until(process, lambda: "saved emergency_step_" in log.read_text())
    faults.set()
    wait_until(process, lambda: "later checkpoints are archived" in log.read_text())
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.code == 143, done
    assert "from step 9 back to step 5" in done.out
    assert "closed file" not in done.out + done.err
    steps = [step for step, _ in events(run_dir)]
    assert steps == list(range(1, latest(run_dir)["step"] + 1))


CALLS = "write pwrite fsync fdatasync read rename link open unlink fallocate ftruncate mkdir"
CALLS += " opendir stat statvfs flock"


def test_no_failing_system_call_ends_a_training(
    token_data: Any, tmp_path: Path, faults: preload.Faults
) -> None:
    """Each system call fails for a while, for every path of the run."""
    run_dir = tmp_path / "run"
    overrides = [*token_data.overrides, "model.n_layer=1", "model.n_embd=8", "model.n_head=1"]
    overrides += [
        "checkpoint.save_every=2",
        "checkpoint.scrub_every=3",
        "checkpoint.keep_rolling=2",
    ]
    overrides += ["trainer.sample_every=7", "trainer.sample_tokens=1", "logger=tensorboard"]
    overrides += ["checkpoint.save_epochs=false", "trainer.max_steps=100000", "hydra.run.dir=run"]
    process = start("train", overrides, tmp_path, faults.environment)
    wait_until(process, lambda: steps_done(run_dir) > 3)
    for call in CALLS.split():
        for number in (EIO, errno.EMFILE):
            faults.set((call, number, "/run"), (call, number, "run/"), (call, number, "run$"))
            time.sleep(0.2)
            faults.set()
            before = steps_done(run_dir)
            wait_until(process, lambda before=before: steps_done(run_dir) > before + 2)
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.code == 143, done
    steps = [step for step, _ in events(run_dir)]
    assert steps == list(range(1, latest(run_dir)["step"] + 1)), "an event was lost"


def test_files_have_the_permissions_of_the_umask(token_data: Any, tmp_path: Path) -> None:
    """A group that shares a directory needs that."""
    overrides = [*token_data.overrides, "trainer.max_steps=4", "checkpoint.save_every=2"]
    overrides += ["logger=tensorboard", "hydra.run.dir=run", "trainer.eval_every=2"]
    prepare = ["data=text", "data.train=prose.txt", "out=shards"]
    (tmp_path / "prose.txt").write_text("The quick brown fox. " * 400)
    commands = {
        "train": overrides,
        "prepare": prepare,
        "checkpoints": ["export", "run", "--to", "weights", "run/weights.safetensors"],
    }
    for name, arguments in commands.items():
        shell = ["sh", "-c", 'umask 002; exec "$@"', "sh", sys.executable, "-m", f"gpt2ckpt.{name}"]
        subprocess.run([*shell, *arguments], cwd=tmp_path, env=environment(), check=True)
    made = [*(tmp_path / "run").rglob("*"), *(tmp_path / "shards").rglob("*")]
    assert {path.suffix for path in made} >= {".pt", ".jsonl", ".json", ".log", ".bin", ".yaml"}
    for path in made:
        wanted = 0o775 if path.is_dir() else 0o664
        assert path.stat().st_mode & 0o777 == wanted, path
