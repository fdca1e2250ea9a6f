"""The summary at a run's end needs no answer of the file system."""

import errno
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from training_helpers import train

from gpt2ckpt.training import run_summary


@pytest.mark.parametrize("hangs", [False, True])
def test_a_file_system_that_does_not_answer_ends_no_finished_training(
    token_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    hangs: bool,
) -> None:
    answers = threading.Event()

    def measure(directory: Path) -> None:
        if hangs:
            answers.wait()
        raise OSError(errno.EIO, "no answer", str(directory))

    monkeypatch.setattr(run_summary, "_saved", measure)
    monkeypatch.setattr(run_summary, "DISK_SECONDS", 0.2)
    with caplog.at_level(logging.INFO):
        outcome = train([*token_data.overrides, "trainer.max_steps=2"], tmp_path / "run")
    answers.set()
    assert outcome.stopped is None
    assert "not known: the file system of the run does not answer" in caplog.text
    assert "gpt2ckpt.sample ckpt=" in caplog.text
