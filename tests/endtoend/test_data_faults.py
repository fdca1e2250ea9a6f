"""Token files that are damaged or replaced while a training reads them, or between two starts."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import finish, opened, start, steps_done, wait_until


def own_data(token_data: Any, folder: Path) -> list[str]:
    """The words of a training on copies of the data that may be changed."""
    for path in (token_data.train, token_data.val):
        shutil.copy(path, folder / path.name)
    return [*token_data.overrides, "data.train=train.bin", "data.val=val.bin"]


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_a_file_that_is_cut_during_the_training_is_an_error_like_any_other(
    token_data: Any, tmp_path: Path, name: str
) -> None:
    """Mapped, it would end the process by SIGBUS: no emergency checkpoint, not a word."""
    words = [*own_data(token_data, tmp_path), "trainer.max_steps=100000", "checkpoint=light"]
    words += ["trainer.eval_every=5", "hydra.run.dir=run"]
    process = start("train", words, tmp_path)
    wait_until(process, lambda: steps_done(tmp_path / "run") >= 10)
    with (tmp_path / name).open("r+b") as file:
        file.truncate(100)
    done = finish(process)
    assert done.code == 1
    assert f"{name}: the file was cut short or rewritten while it was in use" in done.sentence
    assert "has 100 now. Put the whole file back" in done.sentence
    [saved] = (tmp_path / "run" / "checkpoints").glob("emergency_step_*.pt")
    assert opened(saved)["step"] == steps_done(tmp_path / "run") >= 10
