"""The warning that a resume cannot be bitwise exact: one line, and none if it can."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import train

from gpt2ckpt.training import start_report
from gpt2ckpt.training.source_identity import described
from gpt2ckpt.training.state import versions

WARNING = "not bitwise equal to an uninterrupted run: "


@pytest.fixture
def stopped(token_data: Any, tmp_path: Path) -> Path:
    """Train a run of two steps, on one thread, in float32."""
    words = [*token_data.overrides, "schedule=constant", "schedule.warmup_steps=0"]
    train([*words, "trainer.max_steps=2"], tmp_path / "run")
    return tmp_path / "run"


def resume(directory: Path, caplog: pytest.LogCaptureFixture, *more: str) -> list[str]:
    """Resume the run; return the warnings that it is not bitwise exact."""
    caplog.clear()
    train(["resume=latest", "trainer.max_steps=3", *more], directory)
    messages = [record.getMessage() for record in caplog.records]
    return [m.removeprefix(WARNING) for m in messages if m.startswith(WARNING)]


def test_exact_resume_has_no_warning(stopped: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.set_num_threads(
        2
    )  # the default of PyTorch has no effect: the run keeps its number of threads
    assert resume(stopped, caplog) == []


def test_other_thread_count_is_named(stopped: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert resume(stopped, caplog, "trainer.threads=2") == ["threads 1 → 2"]


def test_other_precision_is_named(stopped: Path, caplog: pytest.LogCaptureFixture) -> None:
    reported = resume(stopped, caplog, "trainer.precision=bfloat16")
    assert reported == ["precision float32 → bfloat16"]


def test_other_pytorch_version_is_named(
    stopped: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only one PyTorch is installed, so its version is patched."""
    old = torch.__version__
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert resume(stopped, caplog) == [f"torch {old} → 2.99.0"]


def test_kernel_variable_is_named(
    stopped: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels of this process are already chosen: only the warning is tested."""
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert resume(stopped, caplog) == ["MKL_CBWR unset → COMPATIBLE"]
    monkeypatch.delenv("MKL_CBWR")
    assert resume(stopped, caplog, "trainer.max_steps=4") == ["MKL_CBWR COMPATIBLE → unset"]


def test_edited_code_is_named(
    stopped: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = versions()
    edited = replace(own, code="9c1bffff00", commit="ab" * 20, dirty=True)
    monkeypatch.setattr(start_report, "versions", lambda: edited)
    [reported] = resume(stopped, caplog)
    assert reported.startswith(f"code {described(own)} → 9c1bffff (commit abababab, dirty)")


def test_several_changes_are_one_line(stopped: Path, caplog: pytest.LogCaptureFixture) -> None:
    reported = resume(stopped, caplog, "trainer.threads=2", "trainer.precision=bfloat16")
    assert reported == ["precision float32 → bfloat16, threads 1 → 2"]
