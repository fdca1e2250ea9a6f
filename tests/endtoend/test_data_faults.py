"""Token files that change during training, and warnings about data."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import finish, opened, run, start, steps_done, succeed, wait_until


def own_data(token_data: Any, folder: Path) -> list[str]:
    """Return the arguments of a training run on copies of the data."""
    for path in (token_data.train, token_data.val):
        shutil.copy(path, folder / path.name)
    return [*token_data.overrides, "data.train=train.bin", "data.val=val.bin"]


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_data_file_truncated_during_training_saves_an_emergency_checkpoint(
    token_data: Any, tmp_path: Path, name: str
) -> None:
    """A mapped file would end the process by SIGBUS, without an emergency checkpoint."""
    overrides = [*own_data(token_data, tmp_path), "trainer.max_steps=100000", "checkpoint=light"]
    overrides += ["trainer.eval_every=5", "hydra.run.dir=run"]
    process = start("train", overrides, tmp_path)
    wait_until(process, lambda: steps_done(tmp_path / "run") >= 10)
    with (tmp_path / name).open("r+b") as file:
        file.truncate(100)
    done = finish(process)
    assert done.code == 1
    assert f"{name}: the file was truncated or rewritten while in use" in done.message
    assert "has 100 now. Restore the file" in done.message
    [saved] = (tmp_path / "run" / "checkpoints").glob("emergency_step_*.pt")
    assert opened(saved)["step"] == steps_done(tmp_path / "run") >= 10


def test_start_warns_about_32_bit_tokens_and_overlapping_validation_data(
    token_data: Any, tmp_path: Path
) -> None:
    """32-bit tokens are recognized, and overlapping data is a warning."""
    overrides = own_data(token_data, tmp_path)
    wide = np.fromfile(tmp_path / "train.bin", dtype="<u2").astype("<u4")
    wide.tofile(tmp_path / "train.bin")
    more = ["data.val=train.bin", "trainer.max_steps=2", "checkpoint=off", "dry_run=true"]
    done = succeed(run("train", [*overrides, *more], tmp_path))
    printed = " ".join(done.out.split())
    assert "train.bin of data.val is also in data.train" in printed
    assert "train.bin and 1 more has no header and looks like 32-bit tokens" in printed
    assert "reading it as uint32" in printed
    assert f"train.bin: {len(wide):,} tokens" in printed


def test_prepare_warns_about_overlapping_validation_text(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"This is text {name}. " * 20)
    overrides = ["data.train='*.txt'", "data.val=b.txt", "out=shards"]
    done = succeed(run("prepare", overrides, tmp_path))
    assert "warning: b.txt of data.val is also in data.train" in done.err
