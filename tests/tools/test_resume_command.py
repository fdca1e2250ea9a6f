"""`resume-command`: a shell command that resumes without changes."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tools_helpers import frozen, save, shell

from gpt2ckpt.checkpoint.reading import read_meta
from gpt2ckpt.config.compose import compose_config, in_shell, parse_overrides
from gpt2ckpt.config.replay import freeze, replay
from gpt2ckpt.tools.resume_command import overrides, resume_command


def test_printed_command_resumes_without_changes(checkpoints, real, trained_once) -> None:
    """The checkpoint is older, so that steps remain; its folder has a different name."""
    path = real / "checkpoints" / "rolling_step_000004.pt"
    line = checkpoints("resume-command", path).out
    assert line.count("\n") == 1
    done = shell(line, cwd=trained_once)
    assert done.code == 0, done.err
    log = done.out + done.err
    assert f"resuming from {path}, step 4" in log
    assert "→" not in log
    assert read_meta(real / "checkpoints" / "latest.pt").step == 8
    original = trained_once / "outputs" / "a run, lr=3e-4" / "checkpoints" / "latest.pt"
    compared = checkpoints("diff", original, real / "checkpoints" / "latest.pt", "--tensors")
    assert compared.code == 0, compared.out

    log = checkpoints("log", real).out
    assert re.search(r"├─ \S+ \S+ (resumed from step 4|rolled back from step 8 to 4: resume)", log)
    assert "resumed from step 4" in log


def test_printed_command_contains_all_hyperparameters(checkpoints, run) -> None:
    arguments = shlex.split(checkpoints("resume-command", run).out)
    assert arguments[1:3] == ["-m", "gpt2ckpt.train"]
    assert arguments[3] == f"+resume={run}/checkpoints/latest.pt"
    assert arguments[4:7] == ["data=embedded", "optimizer=adamw", "schedule=cosine"]
    keys = [argument.partition("=")[0] for argument in arguments[7:]]
    groups = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    assert groups == [
        *("model", "data", "optimizer", "schedule", "trainer", "checkpoint", "seed"),
    ]
    assert {"optimizer.lr=0.003", "trainer.max_steps=null", "optimizer.betas=[0.9,0.95]"} <= {
        *arguments
    }


def test_printed_path_is_absolute(checkpoints, run, monkeypatch) -> None:
    monkeypatch.chdir(run)
    assert (
        f"+resume={run}/checkpoints/best_model.pt"
        in checkpoints(*("resume-command", "checkpoints/best_model.pt")).out
    )


TEXTS = st.text(
    st.one_of(st.sampled_from(" =,'\"\\${}[]():~#!`\n"), st.characters(codec="utf-8")), max_size=9
).filter(lambda text: "\0" not in text and text != "???")
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS)


@settings(max_examples=60)
@given(VALUES, st.lists(VALUES, max_size=3))
def test_any_value_survives_the_override_grammar(value: Any, values: list[Any]) -> None:
    config = {"trainer": {"one": value, "many": values}, "schedule": {"kind": "wsd"}, "seed": 1}
    choice, *arguments = overrides(config)
    assert choice == "schedule=wsd"
    parsed = {argument.key_or_group: argument.value() for argument in parse_overrides(arguments)}
    read = OmegaConf.to_container(OmegaConf.create(parsed), resolve=True)
    assert read == {"trainer.one": value, "trainer.many": values, "seed": 1}


def test_awkward_values_are_replayed() -> None:
    config = freeze(compose_config("train", ["schedule=constant", "optimizer=muon"]).values)
    text = "it's a=b, [c] {d}: ${HOME} ${seed} \\ \"\n???"
    config["trainer"] |= {"sample_prompt": text, "max_steps": None}
    config["optimizer"]["lr"] = 1e-300
    config["data"] = {"kind": "text", "train": text, "val": "null", "val_fraction": 0.1}
    config["model"]["init_from"] = "1e3"

    def compose(arguments: list[str]) -> dict[str, Any]:
        return compose_config("train", arguments).values

    assert replay(config, [], overrides(config), compose) == (config, [])


def test_value_that_hydra_cannot_parse_is_left_out() -> None:
    assert overrides({"data": {"kind": "text", "train": "???"}}) == ["data=text"]


@pytest.mark.parametrize(
    "argument",
    [
        *("a=b", "x='a b'", "x='$HOME `id` !!'", "it's", "a\nb'c\\d\te", '"', "", "Läufe/試験"),
        *("x='\\'a\\\\'", "~group", "+a=[1,'b,c']"),
    ],
)
def test_argument_survives_the_shell(argument: str, tmp_path: Path) -> None:
    typed = in_shell(argument)
    assert "\n" not in typed
    assert shell(f"printf %s {typed}", cwd=tmp_path).out == argument


def test_path_with_special_characters_is_one_line() -> None:
    line = resume_command(Path("/a b/c=d,'e\"\n$f.pt"), frozen())
    assert "\n" not in line


@pytest.mark.parametrize(
    "config", [None, {"name": "x"}, {"trainer": {"eval_steps": "x"}}, {"trainer": "x"}]
)
def test_file_without_a_config_is_refused(checkpoints, tmp_path, config: Any) -> None:
    path = save(tmp_path, 1, {"config": config})
    done = checkpoints("resume-command", path)
    assert done.code == 1
    assert f"error: {path} does not hold the config of a run" in done.err
