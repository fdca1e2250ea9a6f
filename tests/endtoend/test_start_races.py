"""Of two processes that resume a run at the same time, one trains, from the newest state."""

import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import preload
from commands import events, finish, latest, run, start, succeed, tree, wait_until


def files(directory: Path) -> dict[str, tuple[str, int]]:
    """Return the content of a run directory except the lock file."""
    return {name: fact for name, fact in tree(directory).items() if name != "run.lock"}


def test_resume_holds_the_lock_while_reading_data(
    reference: Any, token_data: Any, tmp_path: Path
) -> None:
    """A second process could otherwise train in between, and the first would archive its work."""
    directory = tmp_path / "run"
    shutil.copytree(reference.directory, directory)
    overrides = ["+resume=latest", "hydra.run.dir=run", "trainer.max_steps=123"]
    faults = preload.build(tmp_path)
    faults.set(("open", -600, str(token_data.val)))  # a slow disk, or a large text
    slow = start("train", overrides, tmp_path, faults.environment)
    try:
        wait_until(slow, (directory / "run.lock").exists)
        before = files(directory)
        refused = run("train", [*overrides, "optimizer.lr=1e-5"], tmp_path)
        assert refused.code == 1
        owner = f"process {slow.pid} on {socket.gethostname()} "
        assert refused.message.startswith(f"run is being trained by {owner}")
        assert files(directory) == before
    finally:
        os.kill(slow.pid, signal.SIGKILL)
        finish(slow)
    done = succeed(run("train", overrides, tmp_path))
    assert "resuming from run/checkpoints/latest.pt, step 120" in done.out
    assert latest(directory)["step"] == 123
    assert [step for step, _ in events(directory)] == list(range(1, 124))
    assert not (directory / "run.lock").exists()
    assert not list((directory / "checkpoints").glob("abandoned_*"))
