"""The recovery drill as a command: its report, exit codes, and the files that remain."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import gpt2ckpt

ROOT = Path(gpt2ckpt.__file__).resolve().parents[1]
LONG = 900  # seconds for three training runs on a busy machine
FORGETS_GENERATORS = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "gpt2ckpt.training.state":
            import gpt2ckpt.training.rng as rng
            rng.restore_generators = lambda saved: None

sys.meta_path.insert(0, Finder())
"""


def drill(
    arguments: list[str], cwd: Path, path: str = "", **more: str
) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gpt2ckpt.drill", *arguments]
    kept = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    environment = {**kept, "PYTHONPATH": f"{path}:{ROOT}", **more}
    return subprocess.run(
        command, cwd=cwd, env=environment, timeout=LONG, text=True, capture_output=True
    )


def error_message(done: "subprocess.CompletedProcess[str]") -> str:
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_killed_training_resumes_exactly_and_drill_passes(token_data: Any, tmp_path: Path) -> None:
    """The run ends during warm-up, and the folder's name needs quotes in Hydra's grammar."""
    arguments = [*token_data.overrides, "model.dropout=0.1", "trainer.grad_accum=2", "ranks=2"]
    arguments += ["trainer.max_steps=3", "trainer.eval_every=5", "hydra.run.dir=my runs/it's a=b"]
    done = drill(arguments, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exact        yes, bitwise" in done.stdout and "PASSED" in done.stdout
    assert "killed at step" in done.stdout
    # The save may have ended before the kill.
    assert (
        "trained again with identical losses" in done.stdout
        or "no step had to be trained again" in done.stdout
    )
    assert list(tmp_path.iterdir()) == []


def test_inexact_resume_fails_and_keeps_the_folder(token_data: Any, tmp_path: Path) -> None:
    """Random generators are not restored, so dropout uses different masks after the kill."""
    sabotage = tmp_path / "sabotage"
    sabotage.mkdir()
    (sabotage / "sitecustomize.py").write_text(FORGETS_GENERATORS)
    done = drill([*token_data.overrides, "model.dropout=0.1"], tmp_path, path=str(sabotage))
    assert done.returncode == 1
    assert "exact        NO" in done.stdout and "its values differ" in done.stdout
    [kept] = (tmp_path / "outputs").iterdir()
    assert str(kept.relative_to(tmp_path)) in done.stderr
    assert (kept / "killed" / "checkpoints" / "latest.pt").exists()


def test_ctrl_c_ends_the_training_process_and_deletes_the_folder(
    token_data: Any, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2ckpt.drill", *token_data.overrides],
        **{"cwd": tmp_path, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
    )
    training: list[psutil.Process] = []
    while not training:
        assert process.poll() is None, process.communicate()
        training = psutil.Process(process.pid).children()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LONG)
    assert (process.returncode, errors) == (130, "interrupted\n")
    assert psutil.wait_procs(training, timeout=LONG)[1] == []
    assert list(tmp_path.iterdir()) == []


def test_failing_fsync_is_reported_before_any_training(
    token_data: Any, tmp_path: Path, faulty_disk: Path
) -> None:
    more = {"LD_PRELOAD": str(faulty_disk), "FAULT": "fsync fails"}
    done = drill(token_data.overrides, tmp_path, **more)
    assert done.returncode == 1 and "NOT FIT" in done.stdout and "Input/output error" in done.stdout
    assert "FAILED" in done.stdout and "killed" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lrr=1"], "Did you mean optimizer.lr?"),
        (["step=9"], "Did you mean steps?"),
        (["steps=0"], "steps is 0; it must be at least 4"),
        (["dry_run=true"], "Leave dry_run out"),
        (["resume=latest"], "leave resume and fork out"),
        (["checkpoint=off"], "there is nothing to drill"),
    ],
)
def test_wrong_settings_exit_2_and_write_nothing(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = drill(arguments, tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and message in error_message(done)
    assert list(tmp_path.iterdir()) == []


def test_drill_under_torchrun_is_refused(tmp_path: Path) -> None:
    done = drill([], tmp_path, WORLD_SIZE="2", RANK="0")
    assert done.returncode == 2 and "ranks=N" in error_message(done)


def test_unwritable_folder_exits_1_with_one_error_line(token_data: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = drill([*token_data.overrides, "hydra.run.dir=file/run"], tmp_path)
    assert done.returncode == 1 and "cannot be written" in error_message(done)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
