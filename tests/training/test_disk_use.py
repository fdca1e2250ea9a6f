"""The checkpoints of a run take at most the disk space that the start report announces."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from training_helpers import train

from gpt2ckpt.checkpoint.names import Role, role_of
from gpt2ckpt.files import durable
from gpt2ckpt.files.disk_usage import disk_bytes

UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9}
SHORT = [
    "trainer.batch_size=31",
    "trainer.eval_every=9",
    "trainer.eval_steps=1",
]  # 2 steps: an epoch


def announced(messages: list[str]) -> tuple[float, int]:
    """Return the largest number of bytes and of files that the run announces."""
    [found] = [match for m in messages if (match := re.search(r"at most (\S+) (.B) for (\d+)", m))]
    return float(found[1]) * UNITS[found[2]], int(found[3])


def test_run_of_many_epochs_stays_within_announced_size(
    token_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    seen: list[tuple[int, int]] = []

    def observe(real: Any) -> Any:
        def call(*arguments: Any, **more: Any) -> Any:
            result = real(*arguments, **more)
            files = [path for path in folder.glob("*") if ".pt" in path.name]
            inodes = {path.stat().st_ino for path in files}
            seen.append((len(inodes), disk_bytes(folder.glob("*"))))
            return result

        return call

    for name in ("publish", "link", "delete"):
        monkeypatch.setattr(durable, name, observe(getattr(durable, name)))
    caplog.set_level(logging.INFO)
    words = [*SHORT, "trainer.max_steps=60", "checkpoint.save_every=3", "trainer.log_every=60"]
    few = ["checkpoint.keep_rolling=2", "checkpoint.keep_emergency=1", "checkpoint.keep_epochs=3"]
    train([*token_data.overrides, *words, *few], tmp_path / "run")
    most_bytes, most_files = announced(caplog.messages)
    assert most_files == 2 + 1 + 3 + 8
    assert max(files for files, _ in seen) <= most_files
    # The printed number has one decimal, so half a unit of it is rounding.
    assert max(size for _, size in seen) <= most_bytes * 1.02
    assert (
        max(size for _, size in seen) > most_bytes / 3
    )  # the announced number is exact, not an upper bound
    names = sorted(path.name for path in folder.iterdir() if role_of(path.name) is Role.EPOCH)
    assert names == ["epoch_00027.pt", "epoch_00028.pt", "epoch_00029.pt"]


def test_config_without_keep_epochs_keeps_every_epoch(
    token_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2ckpt.checkpoint import format
    from gpt2ckpt.checkpoint.reading import load

    words = [*SHORT, "checkpoint.save_every=1000", "trainer.log_every=100"]
    train([*token_data.overrides, *words, "trainer.max_steps=4"], tmp_path / "run")
    latest = tmp_path / "run" / "checkpoints" / "latest.pt"
    state = load(latest)
    assert state["config"]["checkpoint"].pop("keep_epochs") == 10
    durable.publish(latest, format.encode(state).buffers, lambda path: None)
    train(["+resume=latest", "checkpoint=safe", "trainer.max_steps=30"], tmp_path / "run")
    epochs = [path for path in latest.parent.iterdir() if role_of(path.name) is Role.EPOCH]
    assert len(epochs) == 15
