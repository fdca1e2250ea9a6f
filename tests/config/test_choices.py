"""Tests of conf/: every option composes, and has the defaults of the schema."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from gpt2ckpt.config import schema
from gpt2ckpt.config.checks import check_config
from gpt2ckpt.config.compose import compose_config, conf_directory, sweep_jobs
from gpt2ckpt.config.options import DEFAULT_KINDS, OPTIONS
from gpt2ckpt.config.registry import ROOTS, SINGLE, build_typed
from gpt2ckpt.config.replay import freeze
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.training.validate_run import check_settings

GIVEN = {  # what a choice leaves to the user
    "data=text": ["data.train=a.txt"],
    "data=tokens": ["data.train=a.bin", "data.val=b.bin"],
}
CHOICES = sorted(f"{path.parent.name}={path.stem}" for path in conf_directory().glob("*/*.yaml"))


def typed(*overrides: str) -> schema.TrainConfig:
    config: schema.TrainConfig = build_typed("train", compose_config("train", [*overrides]).values)
    return config


def test_conf_has_all_options_of_the_contract() -> None:
    promised = """model=gpt2_nano model=gpt2_small model=gpt2_medium model=gpt2_large model=gpt2_xl
        data=embedded data=text data=tokens optimizer=adamw schedule=cosine schedule=wsd
        schedule=constant checkpoint=safe checkpoint=light checkpoint=off logger=tensorboard
        logger=wandb logger=all logger=none"""
    assert set(promised.split()) <= set(CHOICES)
    assert {choice.partition("=")[0] for choice in CHOICES} >= {"experiment", "debug", "trainer"}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_composes_and_passes_the_checks(choice: str) -> None:
    group, _, name = choice.partition("=")
    config = typed(choice, *GIVEN.get(choice, []))
    check_settings(config)
    if group in SINGLE:
        kind = DEFAULT_KINDS.get(group, name)
        assert type(getattr(config, group)) is OPTIONS[group][kind].config
        assert getattr(config, group).kind == kind
    written = yaml.safe_load((conf_directory() / group / f"{name}.yaml").read_text())
    written.pop("defaults", None)
    _assert_arrived(written, config if group in ("experiment", "debug") else getattr(config, group))


def _assert_arrived(written: dict[str, Any], target: Any) -> None:
    for key, value in written.items():
        there = getattr(target, key)
        if value == "???" or key == "train":
            continue  # it must be given
        if isinstance(value, dict):
            _assert_arrived(value, there)
        elif isinstance(there, float):
            assert there == float(value), key
        elif isinstance(there, tuple):
            assert list(there) == value, key
        else:
            assert there == value, key


@pytest.mark.parametrize("name", sorted(ROOTS))
def test_every_command_has_a_schema_and_a_config_file(name: str) -> None:
    needed = {
        "train": [],
        "sample": ["ckpt=a.pt"],
        "evaluate": ["ckpt=a.pt", "data=embedded"],
        "prepare": ["data.train=a.txt", "out=shards"],
        "drill": [],
    }[name]
    config = build_typed(name, compose_config(name, needed).values)
    assert type(config) is ROOTS[name]
    assert (conf_directory() / f"{name}.yaml").is_file()


def defaults_of(cls: type) -> dict[str, Any]:
    """Return every key of a schema class with its default."""
    values = OmegaConf.to_container(OmegaConf.structured(cls))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


OF_GROUP = {  # the schema of each group with a default kind or none
    "model": schema.ModelConfig,
    "trainer": schema.TrainerConfig,
    "checkpoint": schema.CheckpointConfig,
    "logger": schema.LoggerConfig,
}


@pytest.mark.parametrize("option", OF_GROUP)
def test_default_option_of_a_group_has_the_defaults_of_the_schema(option: str) -> None:
    chosen = compose_config("train", []).hydra.runtime.choices[option]
    written = yaml.safe_load((conf_directory() / option / f"{chosen}.yaml").read_text())
    written.pop("defaults", None)
    defaults = defaults_of(OF_GROUP[option])
    if option != "logger":  # its other keys are W&B's, which is off
        assert written.keys() == defaults.keys()
    assert written == {key: defaults[key] for key in written}


@pytest.mark.parametrize(
    ("group", "kind"),
    [(group, kind) for group in ("data", "optimizer", "schedule") for kind in OPTIONS[group]],
)
def test_option_of_each_kind_has_the_defaults_of_its_schema(group: str, kind: str) -> None:
    written = yaml.safe_load((conf_directory() / group / f"{kind}.yaml").read_text())
    defaults = defaults_of(OPTIONS[group][kind].config)
    assert {"defaults", *written} - {"defaults"} == defaults.keys()
    for key, default in defaults.items():
        value = written[key]
        assert (float(value) if isinstance(default, float) else value) == default, key


@pytest.mark.parametrize("name", sorted(ROOTS))
def test_config_of_each_command_has_the_defaults_of_its_schema(name: str) -> None:
    written = yaml.safe_load((conf_directory() / f"{name}.yaml").read_text())
    defaults = defaults_of(ROOTS[name])
    own = {key: value for key, value in written.items() if key not in ("defaults", "hydra")}
    groups = [key for entry in written["defaults"] if isinstance(entry, dict) for key in entry]
    assert own == {key: value for key, value in defaults.items() if key not in groups}


PARTIAL = {  # config files of the user's with one key each, and for kinds that line
    "model": "n_layer: 2",
    "data": "kind: embedded\nval_fraction: 0.2",
    "optimizer": "kind: muon\nmomentum: 0.9",
    "schedule": "kind: wsd\nmin_lr_ratio: 0.5",
    "trainer": "batch_size: 3",
    "checkpoint": "keep_rolling: 2",
    "logger": "wandb_project: mine",
}


def test_keys_left_out_of_a_partial_group_file_have_their_defaults(tmp_path: Path) -> None:
    for group, text in PARTIAL.items():
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(text)
        same = [f"{group}.{line.replace(': ', '=')}" for line in text.splitlines()]
        if same[0].startswith(f"{group}.kind"):
            same[0] = same[0].replace(".kind", "")
        own = compose_config("train", [f"{group}=mine"], extra_dir=tmp_path).values
        assert freeze(own) == freeze(compose_config("train", same).values)


def test_model_shapes_are_those_of_the_published_models() -> None:
    shapes = {
        name: (c.n_layer, c.n_head, c.n_embd, c.block_size, c.vocab_size)
        for name in ("small", "medium", "large", "xl")
        for c in [typed(f"model=gpt2_{name}").model]
    }
    assert shapes == {  # Radford et al., 2019, table 2; heads of 64 as in the released weights
        "small": (12, 12, 768, 1024, 50257),
        "medium": (24, 16, 1024, 1024, 50257),
        "large": (36, 20, 1280, 1024, 50257),
        "xl": (48, 25, 1600, 1024, 50257),
    }


def test_error_names_a_missing_value() -> None:
    for choice in ("text", "tokens"):
        with pytest.raises(ConfigError, match=r"data\.train is missing: pass .*data\.train=PATH"):
            check_config(typed(f"data={choice}", "data.val=a.txt"))
    with pytest.raises(ConfigError, match=r"ckpt is missing: pass ckpt=PATH"):
        build_typed("sample", compose_config("sample", []).values)


def test_config_dir_adds_options(tmp_path: Path) -> None:
    folder = tmp_path / "my conf, of=mine"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ntrainer:\n  max_steps: 77\n"
    )
    composed = compose_config("train", ["experiment=mine"], extra_dir=folder)
    assert composed.values["trainer"]["max_steps"] == 77


def test_sweep_has_a_job_for_each_combination() -> None:
    jobs = sweep_jobs(["optimizer.lr=1e-3,2e-3", "seed=choice(1,2)", "name=x"])
    assert jobs == [
        [f"optimizer.lr={lr}", f"seed={seed}", "name=x"]
        for lr in ("0.001", "0.002")
        for seed in (1, 2)
    ]


def test_frozen_config_has_no_resume_keys() -> None:
    values = compose_config("train", ["resume=latest", "fork=true"]).values
    frozen = freeze(values)
    assert set(values) - set(frozen) == {"callback", "dry_run", "fork", "plugins", "resume"}
    assert "kind" not in {*frozen["model"], *frozen["logger"]}
    assert build_typed("train", frozen).resume is None
