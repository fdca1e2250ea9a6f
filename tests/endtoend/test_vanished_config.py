"""A run resumes from its frozen config after its config files were renamed."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import latest, run, succeed

from gpt2ckpt import train
from gpt2ckpt.checkpoints import main as checkpoints

RUN = "hydra.run.dir=outputs/2024_11_28"  # kept as it is typed, and not read as a number
FIRST = ["experiment=mine", "model=mine", "--config-dir", "my"]


@pytest.fixture(scope="module")
def folder(token_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vanished")
    for name, text in {
        "experiment/mine": "# @package _global_\ndefaults:\n  - override /optimizer: muon\n"
        "name: mine\ntrainer:\n  grad_accum: 2\n",
        "model/mine": "n_layer: 2\nn_head: 2\nn_embd: 32\nblock_size: 32\nvocab_size: 64\n",
    }.items():
        path = folder / "my" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    overrides = [word for word in token_data.overrides if not word.startswith("model.")]
    succeed(run("train", [*FIRST, *overrides, "trainer.max_steps=2", RUN], folder))
    (folder / "my").rename(folder / "renamed")
    return folder


def test_resume_with_new_settings_needs_no_config_file_of_the_first_start(folder: Path) -> None:
    done = succeed(run("train", ["+resume=latest", RUN, "trainer.max_steps=3"], folder))
    assert "trainer.max_steps: 2 → 3" in done.out
    directory = folder / "outputs" / "2024_11_28"
    config = latest(directory)["config"]
    assert (config["name"], config["optimizer"]["kind"], config["model"]["n_layer"]) == (
        *("mine", "muon"),
        2,
    )
    record = yaml.safe_load((directory / ".hydra" / "resume_1" / "overrides.yaml").read_text())
    assert "trainer.max_steps=3" in record and "experiment=mine" not in record
    assert "experiment=mine" in latest(directory)["overrides"]  # what was typed is kept


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optimizer.momentum=0.9"], "optimizer.momentum: 0.95 → 0.9"),
        (["~experiment", "seed=3"], "seed: 1337 → 3"),
        (["experiment=mine", "model=mine", "seed=3"], "seed: 1337 → 3"),  # typed again
        (["fork=true", "seed=3"], "seed: 1337 → 3"),
        (["experiment=mime"], "there is no experiment=mime"),
        (["optimizer.momentun=0.9"], "Did you mean optimizer.momentum?"),
    ],
    ids=str,
)
def test_new_overrides_change_the_frozen_config(
    folder: Path,
    overrides: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["+resume=latest", RUN, "trainer.max_steps=9", "dry_run=true", *overrides]
    out, err, code = dry_run(folder, line, monkeypatch, capsys)
    assert expected in out + err
    assert code == (2 if err else 0)
    assert "trainer.grad_accum" not in out and "model." not in out


def test_output_of_resume_command_works_unchanged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["checkpoints", "resume-command", "outputs/2024_11_28"])
    with pytest.raises(SystemExit):
        checkpoints()
    overrides = shlex.split(capsys.readouterr().out)
    overrides = overrides[overrides.index("gpt2ckpt.train") + 1 :]
    out, err, code = dry_run(folder, [*overrides, "dry_run=true"], monkeypatch, capsys)
    assert (code, err) == (0, "") and "→" not in out


def dry_run(
    folder: Path,
    overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> tuple[str, str, int]:
    """Run the command in this process and return its output, error and exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["train", *overrides])
    with pytest.raises(SystemExit) as end:
        train.main()
    printed = capsys.readouterr()
    return printed.out, printed.err, int(end.value.code or 0)
