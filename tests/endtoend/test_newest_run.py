"""`latest` and `auto` on the command line with several runs in outputs/."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import run, succeed

from gpt2ckpt import train
from gpt2ckpt.checkpoints import main as checkpoints


@pytest.fixture(scope="module")
def folder(reference: Any, token_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two runs: the newer name is the older run, and the newer run has a manual name."""
    folder = tmp_path_factory.mktemp("shared")
    older = folder / "outputs" / "reference_run_20991231_235959"
    shutil.copytree(reference.directory, older, copy_function=shutil.copy2)
    overrides = [*token_data.overrides, "trainer.max_steps=2", "name=alpha"]
    succeed(run("train", [*overrides, "hydra.run.dir=outputs/mine"], folder))
    for path in [older, *older.rglob("*")]:
        os.utime(path)  # as a copy or an unpacked archive: file times say nothing
    return folder


@pytest.fixture
def preview(
    folder: Path,
    token_data: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[str, str]]:
    """Return the output and error of a dry run in this process."""

    def call(*overrides: str) -> tuple[str, str]:
        monkeypatch.chdir(folder)
        line = [*token_data.overrides, "trainer.max_steps=9", "dry_run=true", *overrides]
        monkeypatch.setattr("sys.argv", ["train", *line])
        with pytest.raises(SystemExit):
            train.main()
        printed = capsys.readouterr()
        return printed.out, printed.err

    return call


def test_latest_is_the_run_that_was_trained_last(preview: Any) -> None:
    """The name of a directory does not matter."""
    for word in ("resume=latest", "+resume=auto"):
        assert "resuming from outputs/mine/checkpoints/latest.pt, step 2" in preview(word)[0]


def test_name_selects_among_runs_in_one_folder(preview: Any) -> None:
    """A first start must not resume the run of another job."""
    assert "would start a new run in outputs/beta_run_" in preview("+resume=auto", "name=beta")[0]
    out, _ = preview("+resume=auto", "name=reference", "optimizer.lr=1e-2")
    assert "outputs/reference_run_20991231_235959 is finished: step 120" in out
    _, error = preview("+resume=latest", "name=beta")
    assert "there is no checkpoint of a run with name=beta in outputs" in error
    assert "the newest run there, outputs/mine, has name=alpha" in error
    _, error = preview("+resume=latest", "experiment=quick")  # which gives a name, too
    assert "there is no checkpoint of a run with name=quick in outputs" in error
    out, _ = preview("+resume=latest", "name=beta", "fork=true")  # the name of the new run
    assert "forking from outputs/mine/" in out


def test_tools_select_the_same_newest_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["checkpoints", "resume-command", "latest"])
    with pytest.raises(SystemExit):
        checkpoints()
    assert "outputs/mine/checkpoints/latest.pt" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["checkpoints", "prune", "--keep-runs", "1"])
    with pytest.raises(SystemExit):
        checkpoints()
    assert "outputs/reference_run_20991231_235959: the complete run" in capsys.readouterr().out
