"""Tests that a wrong override is refused in one line with the nearest valid key."""

from pathlib import Path
from typing import Any

import pytest

from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.config.registry import all_keys, build_typed, no_such_key
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.training.validate_run import check_settings

WRONG = {
    # misspelt keys
    "optimizer.lrr=1e-3": "there is no config key or group optimizer.lrr. "
    "Did you mean optimizer.lr?",
    "trainer.max_step=10": "Did you mean trainer.max_steps?",
    "lr=1e-3": "Did you mean optimizer.lr?",
    "max_steps=10": "Did you mean trainer.max_steps?",
    "model.n_layers=3": "Did you mean model.n_layer?",
    "checkpoint.save_evry=3": "Did you mean checkpoint.save_every?",
    "++trainer.batchsize=4": "Did you mean trainer.batch_size?",
    "resme=latest": "Did you mean resume?",
    "modle=gpt2_nano": "Did you mean model?",
    # what other programs call them
    "epochs=3": "Did you mean trainer.max_epochs=3?",
    "max_iters=100": "Did you mean trainer.max_steps=100?",
    "trainer.batchsize=8": "Did you mean trainer.batch_size?",
    "batch_size=8": "Did you mean trainer.batch_size?",
    "learning_rate=1e-3": "Did you mean optimizer.lr=1e-3?",
    "optimizer.learning_rate=1e-3": "Did you mean optimizer.lr=1e-3?",
    "wandb=true": "Did you mean logger=wandb?",
    "gradient_accumulation_steps=4": "Did you mean trainer.grad_accum=4?",
    "save_steps=50": "Did you mean checkpoint.save_every=50?",
    "n_layers=3": "Did you mean model.n_layer?",
    "model=gpt2": "Did you mean model=gpt2_small?",
    "model=gpt2-medium": "Did you mean model=gpt2_medium?",
    "trainer.device=gpu": "Did you mean cuda?",
    "trainer.device=cuda0": "Did you mean cuda:0?",
    "trainer.precision=fp16": "Did you mean float16?",
    "trainer.precision=32": "Did you mean float32?",
    "trainer.max_steps=1e3": "must be a whole number, or null; write trainer.max_steps=1000",
    "hydra/launcher=ray": "hydra/launcher=ray needs a package that is not installed: pip install",
    "hydra/launcher=slurm": "pip install hydra-submitit-launcher",
    "hydra/launcher=submitit_local": "pip install hydra-submitit-launcher",
    "hydra/sweeper=ax": "pip install hydra-ax-sweeper",
    "hydra/launcher=joblob": "Did you mean hydra/launcher=joblib?",
    "hydra/sweeper=optun": "Did you mean hydra/sweeper=optuna?",
    "logger=false": "the options are all, none, tensorboard, wandb",
    "data.train=x": "data.train does not go with the chosen data: add data=text or data=tokens.",
    "optimizer.momentum=0.9": "not go with the chosen optimizer: add optimizer=muon.",
    "~optimizer.lr": "~optimizer.lr is not possible: a key can be changed, not removed.",
    "optimizer.lr=1e-3,,2e-3": "cannot be read (a comma has no value beside it): optimizer.lr",
    "optimizer.lr=1e-3,": "cannot be read (a comma has no value beside it): optimizer.lr must be",
    "optimizer.betas=[0.9,0.95": "cannot be read (a bracket is not closed or not opened): optim",
    "latest": "of the form key=value: write +resume=latest",
    "trainer.dryrun=true": "Did you mean dry_run?",
    "optimzer.weight_decy=0": "Did you mean optimizer.weight_decay?",
    # misspelt choices
    "model=gpt2_nanoo": "Did you mean model=gpt2_nano?",
    "data=embeded": "Did you mean data=embedded?",
    "optimizer=adam": "Did you mean optimizer=adamw?",
    "schedule=cosin": "the options are constant, cosine, wsd. Did you mean schedule=cosine?",
    "checkpoint=save": "Did you mean checkpoint=safe?",
    "logger=tensorbord": "Did you mean logger=tensorboard?",
    "experiment=quik": "Did you mean experiment=quick?",
    "trainer=null": "trainer=null is not an option: give trainer=NAME",
    "data=3": "data=3 is not an option: give data=NAME",
    # wrong types
    "trainer.max_steps=ten": "trainer.max_steps=ten is not possible: "
    "trainer.max_steps must be a whole number, or null",
    "trainer.max_steps=1.5": "trainer.max_steps must be a whole number, or null",
    "trainer={max_steps:ten}": "trainer.max_steps must be a whole number, or null",
    "trainer={max_stepz:10}": "Did you mean trainer.max_steps?",
    "optimizer.lr=fast": "optimizer.lr=fast is not possible: optimizer.lr must be a number",
    "optimizer.betas=abc": "optimizer.betas=abc is not possible: optimizer.betas must be a list of "
    "two numbers, as in [0.9,0.95]",
    "optimizer.betas=[0.9,x]": "optimizer.betas must be a list of two numbers",
    "optimizer.betas=[0.9]": "optimizer.betas is [0.9]; it must be two numbers",
    "trainer.compile=maybe": "trainer.compile=maybe is not possible: "
    "trainer.compile must be true or false",
    "model.n_layer=2.5": "model.n_layer=2.5 is not possible: model.n_layer must be a whole number",
    "model.n_layer=null": "model.n_layer must be a whole number",
    "trainer.sample_prompt=[a]": "trainer.sample_prompt must be a string",
    "logger.wandb_tags=3": "logger.wandb_tags must be a list of strings, as in [a,b]",
    "fork=maybe": "fork=maybe is not possible: fork must be true or false, or null",
    # out of range
    "seed=-1": "seed is -1; it must be at least 0",
    "name=a/b": "name='a/b' becomes part of a directory name",
    "model.n_layer=0": "model.n_layer is 0; it must be at least 1",
    "model.dropout=1.0": "model.dropout is 1.0; it must be at least 0 and below 1",
    "trainer.max_steps=0": "trainer.max_steps is 0",
    "trainer.max_epochs=0": "trainer.max_epochs is 0; it must be at least 1",
    "trainer.grad_clip=nan": "trainer.grad_clip is nan",
    "trainer.threads=0": "trainer.threads is 0",
    "trainer.device=tpu": "trainer.device is 'tpu'; it must be auto, cpu, cuda, cuda:N or mps",
    "trainer.precision=bf16": "Did you mean bfloat16?",
    "checkpoint.keep_rolling=0": "checkpoint.keep_rolling is 0",
    "optimizer.lr=-1": "optimizer.lr=-1.0 is out of range",
    "optimizer.betas=[0.9,1.0]": "optimizer.betas=[0.9, 1.0] is out of range",
    "schedule.min_lr_ratio=2": "schedule.min_lr_ratio=2.0 is out of range",
    # contradictions
    "model.n_embd=100 model.n_head=3": "model.n_embd=100 is not divisible by model.n_head=3",
    "schedule.steps=10": "schedule.warmup_steps=40 is more than schedule.steps=10",
    "~optimizer": "there is no optimizer: pass optimizer=NAME",
    # the grammar
    "foo": "'foo' is not an override of the form key=value",
    "a" * 5000: f"'{'a' * 5000}' is not an override of the form key=value",
    "optimizer.lr==3": "optimizer.lr==3 cannot be read: optimizer.lr must be a number",
    "optimizer.betas=[1": "optimizer.betas=[1 cannot be read (a bracket is not closed",
    "+optimizer.lr=3": "optimizer.lr already has a value: write optimizer.lr=VALUE without",
    "trainer.max_steps=1,2": "add -m for a sweep over its parts",
    "name=${nothing}": "name is not possible: Interpolation key 'nothing' not found",
    # foreign code
    "optimizer.kind=os.system": "optimizer.kind is 'os.system'; it must be one of adamw, muon",
    "+optimizer._target_=os.system": "there is no config key or group optimizer._target_",
}


@pytest.mark.parametrize("arguments", sorted(WRONG))
def test_wrong_override_is_refused_in_one_line(arguments: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_settings(build_typed("train", compose_config("train", arguments.split()).values))
    message = str(raised.value)
    assert WRONG[arguments] in message
    assert "\n" not in message
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("root", "argument", "expected"),
    [
        ("sample", "temprature=1", "Did you mean temperature?"),
        ("sample", "model.n_layer=3", "there is no config key or group model.n_layer."),
        ("evaluate", "ckp=a.pt", "Did you mean ckpt?"),
        ("evaluate", "data=tokenz", "Did you mean data=tokens?"),
        ("prepare", "shard_token=3", "Did you mean shard_tokens?"),
        ("prepare", "optimizer.lr=3", "there is no config key or group optimizer.lr."),
    ],
)
def test_other_commands_suggest_their_own_keys(root: str, argument: str, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        compose_config(root, [argument])
    assert str(raised.value).endswith(expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("max_steps: ten", "trainer.max_steps must be a whole number, or null"),
        (
            "max_step: 10",
            "there is no config key or group trainer.max_step. Did you mean trainer.max_steps?",
        ),
    ],
)
def test_error_in_a_config_file_names_the_file(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\ntrainer:\n  {line}\n")
    with pytest.raises(ConfigError) as raised:
        compose_config("train", ["experiment=mine"], tmp_path)
    assert str(raised.value) == f"{tmp_path}/experiment/mine.yaml: {expected}"


@pytest.mark.parametrize(
    ("group", "values", "expected"),
    [
        (
            "trainer",
            {"max_steps": "ten"},
            "trainer.max_steps is 'ten'; trainer.max_steps must be a",
        ),
        ("optimizer", {"betas": [0.9, "x"]}, "optimizer.betas[1] is 'x'; optimizer.betas must be"),
    ],
)
def test_wrong_type_in_a_frozen_config_is_named(
    group: str, values: dict[str, Any], expected: str
) -> None:
    plain = compose_config("train", []).values
    with pytest.raises(ConfigError) as raised:
        build_typed("train", {**plain, group: {**plain[group], **values}})
    assert str(raised.value).startswith(expected)


@pytest.mark.parametrize("key", [key for key in all_keys("train") if key.count(".") == 1])
def test_misspelt_key_suggests_the_key(key: str) -> None:
    slip = f"{key[:-2]}{key[-1]}{key[-2]}" if key[-1] != key[-2] else key[:-1]
    if slip not in all_keys("train"):
        assert f"Did you mean {key}?" in no_such_key(slip)
