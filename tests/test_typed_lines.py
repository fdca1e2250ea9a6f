"""An unknown flag is refused with the key to use instead, and config files are found."""

from pathlib import Path

import pytest

from gpt2ckpt.application import parse_command_line
from gpt2ckpt.errors import ConfigError

FLAGS = {
    "train --batch_size=8": "no flag --batch_size: write settings as key=value. Did you",
    "train --batch-size 8": "Did you mean trainer.batch_size=8?",
    "train --checkpoint_freq 250": "Did you mean checkpoint.save_every=250?",
    "train --keep_checkpoints 10": "Did you mean checkpoint.keep_rolling=10?",
    "train --keep_emergency_checkpoints 10": "Did you mean checkpoint.keep_emergency=10?",
    "train --checkpoint_dir D": "Did you mean hydra.run.dir=D?",
    "train --resume latest": "Did you mean resume=latest?",
    "train --num_epochs 3": "Did you mean trainer.max_epochs=3?",
    "train --use_tensorboard": "Did you mean logger=tensorboard?",
    "train --list_checkpoints": "Did you mean python -m gpt2ckpt.checkpoints list?",
    "train --lr=1e-3 seed=3": "Did you mean optimizer.lr=1e-3?",
    "train -lr 1e-3": "Did you mean optimizer.lr=1e-3?",
    "train -max_steps 10": "Did you mean trainer.max_steps=10?",
    "train --gpus=2": "Did you mean torchrun --standalone --nproc_per_node=N",
    "train --multirn": "Did you mean --multirun?",
    "train --nonsense=3": "Write settings as key=value, without dashes",
    "sample --max_new_tokens=5": "Did you mean max_tokens=5?",
    "sample -prompt Hello": "Did you mean prompt=Hello?",
    "sample --start Hello": "Did you mean prompt=Hello?",
    "sample ckpt --cfg": "argument --cfg/-c: expected one argument",
    "evaluate --checkpoint a.pt": "Did you mean ckpt=a.pt?",
    "prepare --output_dir=o": "Did you mean out=o?",
    "drill --epochs 2": "Did you mean trainer.max_epochs=2?",
}


def parse(monkeypatch: pytest.MonkeyPatch, line: str) -> object:
    name, *arguments = line.split()
    monkeypatch.setattr("sys.argv", ["program", *arguments])
    return parse_command_line(name)


@pytest.mark.parametrize("line", FLAGS)
def test_unknown_flag_error_names_the_key_to_write(
    monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(monkeypatch, line)
    assert FLAGS[line] in str(raised.value)


def test_valid_flags_are_passed_to_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["program", "seed=1", "--cfg", "job", "-m", "name=It's"])
    line = parse_command_line("train")
    assert (line.flags, line.multirun, line.asks_hydra) == (["--cfg=job", "--multirun"], True, True)
    assert line.overrides == ["seed=1", r"name='It\'s'"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train --config-dir=gone", "--config-dir=gone: there is no such directory"),
        ("train --config-path=own.yaml", "--config-path=own.yaml is a file: pass its folder"),
        ("train --config-name=gone/own", "--config-name=gone/own: there is no file gone/own.yaml"),
        ("train --config-name=own", "there is no config own. Pass the folder of your config"),
        (
            "train --config-dir=. --config-name=owm",
            "there is no config owm in .. Did you mean own?",
        ),
        ("train --config-name=./sub/train", "sub/train.yaml has the name of a config of gpt2ckpt"),
    ],
)
def test_invalid_config_name_or_path_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, expected: str
) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("own.yaml", "sub/train.yaml"):
        (tmp_path / name).write_text("defaults: [train, _self_]\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        parse(monkeypatch, line)
    assert expected in str(raised.value)
