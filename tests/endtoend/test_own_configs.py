"""Config files and sweeps of the user on the command line, as in plain Hydra."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Done, environment, latest, run, side_by_side, succeed

from gpt2ckpt.config.compose import compose_config

QUICK = ["trainer.max_steps=2", "trainer.eval_steps=1"]
PARTIAL = {"trainer": "grad_accum: 2", "optimizer": "kind: adamw\nweight_decay: 0.2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "my conf").mkdir()
    (folder / "my conf" / "mytrain.yaml").write_text("defaults: [train, _self_]\nname: own\n")
    for name in ("sample", "evaluate", "prepare"):
        text = f"defaults: [{name}, _self_]\n" + ("ckpt: gone.pt\n" if name != "prepare" else "")
        (folder / "my conf" / f"my{name}.yaml").write_text(text)
    for group, text in PARTIAL.items():
        (folder / "my conf" / group).mkdir()
        (folder / "my conf" / group / "mine.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def done(folder: Path, token_data: Any) -> dict[str, Done]:
    overrides = [*token_data.overrides, *QUICK]
    own = ["--config-dir", "my conf", "--config-name", "mytrain"]
    left_out = ("trainer.eval_every", "trainer.sample_every")
    few = [word for word in overrides if not word.startswith(left_out)]
    awkward = "hydra.run.dir=it's lr=${optimizer.lr}, läuft"
    return side_by_side(
        folder,
        {
            "train": ("train", [*own, *overrides, awkward]),
            "partial": (
                "train",
                [*own[:2], "trainer=mine", "optimizer=mine", *few, "hydra.run.dir=partial"],
            ),
            "path": (
                "train",
                ["--config-path=my conf", "--config-name=mytrain.yaml", "dry_run=true"],
            ),
            "file": ("train", ["--config-name", f"{folder}/my conf/mytrain.yaml", "dry_run=true"]),
            "relative": ("train", ["--config-name=my conf/mytrain", "dry_run=true"]),
            "sample": ("sample", ["--config-dir=my conf", "--config-name=mysample"]),
            "evaluate": ("evaluate", ["--config-dir=my conf", "-cn", "myevaluate"]),
            "prepare": ("prepare", ["--config-dir=my conf", "--config-name=myprepare"]),
            "misspelt": ("train", ["--config-dir=my conf", "--config-name=mytrian"]),
        },
    )


def test_training_uses_a_config_in_another_folder(folder: Path, done: dict[str, Done]) -> None:
    succeed(done["train"])
    assert latest(folder / "it's lr=0.003, läuft")["config"]["name"] == "own"


def test_keys_left_out_of_partial_group_files_train_with_their_defaults(
    folder: Path, done: dict[str, Done]
) -> None:
    succeed(done["partial"])
    partial = latest(folder / "partial")["config"]
    whole = latest(folder / "it's lr=0.003, läuft")["config"]
    default = compose_config("train", []).values
    assert partial["trainer"] == whole["trainer"] | {
        "grad_accum": 2,
        "eval_every": default["trainer"]["eval_every"],
        "sample_every": default["trainer"]["sample_every"],
    }
    assert partial["optimizer"] == default["optimizer"] | {"weight_decay": 0.2}


@pytest.mark.parametrize("way", ["path", "file", "relative"])
def test_config_is_found_by_every_spelling_of_its_path(done: dict[str, Done], way: str) -> None:
    assert "outputs/own_run_" in succeed(done[way]).out


@pytest.mark.parametrize("name", ["sample", "evaluate", "prepare"])
def test_other_commands_read_user_configs(done: dict[str, Done], name: str) -> None:
    expected = "out is missing" if name == "prepare" else "ckpt=gone.pt: there is no such file"
    assert expected in done[name].message or "data.train" in done[name].message


def test_misspelt_config_name_suggests_the_nearest(done: dict[str, Done]) -> None:
    assert done["misspelt"].message == (
        "there is no config mytrian in my conf. Did you mean mytrain?"
    )
    assert done["misspelt"].code == 2


def test_printed_resume_command_works_in_a_shell_for_any_directory_name(
    folder: Path, done: dict[str, Done]
) -> None:
    [line] = [line for line in done["train"].out.splitlines() if line.startswith("sample ")]
    command = line.removeprefix("sample").strip()
    sampled = subprocess.run(
        ["bash", "-c", f"{command} max_tokens=2 device=cpu prompt="],
        **{"cwd": folder, "env": environment(), "capture_output": True, "text": True},
    )
    assert sampled.returncode == 0, sampled.stderr + command


def test_sweep_over_all_options_of_a_group_is_resumed(token_data: Any, tmp_path: Path) -> None:
    overrides = [*token_data.overrides, *QUICK, "seed=shuffle(range(1,3))", "hydra.sweep.dir=s"]
    dry = ["-m", *overrides, "schedule=glob(*,exclude=w*)", "dry_run=true"]
    first = succeed(run("train", ["-m", *overrides, "schedule=glob(co*)"], tmp_path))
    for name in ("constant", "cosine"):
        assert first.out.count(f"schedule={name} ") == 2 and "schedule=wsd" not in first.out
    command = [sys.executable, "-O", "-m", "gpt2ckpt.train", *dry, "+resume=auto"]
    again = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("  finished") == 4
