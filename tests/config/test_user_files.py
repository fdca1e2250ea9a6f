"""Tests that an error in a config file names the file and the line to write."""

from pathlib import Path

import pytest

from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.errors import ConfigError

HEAD = b"# @package _global_\n"


def defaults(entry: str) -> bytes:
    return HEAD + f"defaults:\n  - {entry}\n".encode()


LIST = "which its defaults list names; the"
WRONG = {
    "headless": (b"trainer:\n  max_steps: 4\n", "make `# @package _global_` its first line"),
    "empty": (b"", "make `# @package _global_` its first line"),
    "title": (b"# a title\n" + HEAD, "make `# @package _global_` its first line"),
    "mark": (b"\xef\xbb\xbf" + HEAD + b"name: x\n", "byte-order mark, which hides its line"),
    "key": (
        HEAD + b"optimizer: muon\n",
        "write it in the defaults list, as `defaults: [override /op",
    ),
    "tab": (HEAD + b"trainer:\n\tmax_steps: 4\n", ", line 3: YAML allows no tab before a key"),
    "group": (
        defaults("override /optimzer: muon"),
        f"there is no group optimzer, {LIST} groups are",
    ),
    "option": (
        defaults("override /optimizer: moun"),
        f"no optimizer=moun, {LIST} options are adamw",
    ),
    "near": (defaults("override /optimizer: moun"), "Did you mean optimizer=muon?"),
    "slash": (defaults("override optimizer: muon"), "write `- override /optimizer: muon` in its"),
    "override": (defaults("/optimizer: muon"), "write `- override /optimizer: muon` in its"),
    "colon": (
        defaults("override /optimizer"),
        "has no option: write `- override /optimizer: NAME`",
    ),
    "text": (b"just words\n", ": the file holds a str: write lines of the form key: value"),
    "latin": (
        HEAD + b"name: x # l\xe4ufe\n",
        ", line 2: not UTF-8: save the file as UTF-8",
    ),
    "utf16": ("name: x\n".encode("utf-16"), ", line 1: not UTF-8: save the file as UTF-8"),
    "yaml": (HEAD + b"trainer: {max_steps: 4\n", ", line 3: not YAML (expected ',' or '}'"),
    "list": (
        HEAD + b"defaults: 3\n",
        ": defaults must be a list: write each entry on its own line",
    ),
}
RIGHT = {
    "comment": HEAD,
    "crlf": b"# @package _global_\r\ntrainer:\r\n  max_steps: 4\r\n",
    "noself": HEAD + b"defaults:\n  - override /optimizer: muon\ntrainer:\n  max_steps: 4\n",
    "blank": b"\n#  @package _global_\n# a title\ntrainer:\n  max_steps: 4\n",
}


def write(folder: Path, name: str, content: bytes) -> Path:
    file = folder / "experiment" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("name", WRONG)
def test_error_in_an_experiment_file_is_named_with_the_line_to_write(
    tmp_path: Path, name: str
) -> None:
    content, expected = WRONG[name]
    file = write(tmp_path, name, content)
    with pytest.raises(ConfigError) as raised:
        compose_config("train", [f"experiment={name}"], tmp_path)
    assert str(raised.value).startswith(str(file))
    assert expected in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("name", RIGHT)
def test_correct_experiment_file_is_used(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, RIGHT[name])
    composed = compose_config("train", [f"experiment={name}"], tmp_path)
    assert composed.values["trainer"]["max_steps"] == (4 if b"max_steps" in RIGHT[name] else None)


def test_keys_nested_under_their_own_group_are_explained(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    file = tmp_path / "optimizer" / "fast.yaml"
    file.write_text("defaults: [adamw]\noptimizer:\n  lr: 1\n")
    with pytest.raises(ConfigError) as raised:
        compose_config("train", ["optimizer=fast"], tmp_path)
    assert str(raised.value).startswith(f"{file} holds the keys of optimizer: remove the line")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("name: own\n", "with the line `defaults: [train, _self_]`"),
        ("defaults: [train, model: gpt2_small]\n", "write `- override model: gpt2_small` in its"),
        ("defaults: [trian]\n", "there is no config trian"),
    ],
)
def test_error_in_a_primary_config_is_explained(
    tmp_path: Path, content: str, expected: str
) -> None:
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(ConfigError) as raised:
        compose_config("own", [], tmp_path)
    assert expected in str(raised.value)


def test_primary_config_of_the_user_builds_on_the_command_config(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "defaults: [train, override model: gpt2_small, _self_]\nname: own\n"
    )
    values = compose_config("own", ["experiment=quick", "seed=3"], tmp_path).values
    assert (values["model"]["n_layer"], values["trainer"]["max_steps"]) == (12, 100)
    assert (values["name"], values["seed"]) == ("own", 3)
