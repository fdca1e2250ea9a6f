"""Tests of frozen configs of earlier versions, and of the keys for the evaluation length."""

from typing import Any

import pytest

from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.config.earlier import completed
from gpt2ckpt.config.registry import build_data_config, build_typed
from gpt2ckpt.config.replay import freeze, replay, still_meant
from gpt2ckpt.errors import ConfigError

TOKENS = ["data=tokens", "data.train=a.bin", "data.val=b.bin"]


def compose(arguments: list[str]) -> dict[str, Any]:
    return compose_config("train", arguments).values


def earlier(arguments: list[str], eval_steps: int) -> dict[str, Any]:
    """Return a frozen config of a version that counted an evaluation in batches."""
    frozen = freeze(compose(arguments))
    frozen["trainer"] = {**frozen["trainer"], "eval_steps": eval_steps}
    del frozen["trainer"]["eval_blocks"]
    frozen["data"].pop("dtype", None)
    return frozen


def resumed(frozen: dict[str, Any], recorded: list[str], new: list[str]) -> dict[str, Any]:
    values, _ = replay(frozen, still_meant(frozen, recorded, new, compose), new, compose)
    return values


def test_evaluation_has_160_blocks_and_eval_steps_counts_8_blocks() -> None:
    for batch in ("trainer.batch_size=1", "trainer.batch_size=64"):
        assert freeze(compose([batch]))["trainer"]["eval_blocks"] == 160
        trainer = freeze(compose([batch, "trainer.eval_steps=5"]))["trainer"]
        assert (trainer["eval_blocks"], trainer["eval_steps"]) == (40, None)
    small = freeze(compose(["experiment=gpt2_small", "trainer.eval_steps=5"]))
    assert small["trainer"]["eval_blocks"] == 40


def test_eval_blocks_and_eval_steps_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval_blocks and trainer\.eval_steps both set"):
        compose(["trainer.eval_blocks=8", "trainer.eval_steps=1"])
    assert compose(["trainer.eval_blocks=8", "trainer.eval_steps=null"])


@pytest.mark.parametrize("argument", ["trainer.eval_blocks=0", "trainer.eval_steps=0"])
def test_evaluation_length_of_zero_is_kept_for_the_check(argument: str) -> None:
    key, _, _ = argument.partition("=")
    assert freeze(compose([argument]))["trainer"][key.removeprefix("trainer.")] == 0


@pytest.mark.parametrize(
    ("new", "blocks"),
    [
        ([], 12),
        (["trainer.batch_size=1", "trainer.grad_accum=4"], 12),
        (["trainer.eval_steps=3"], 12),  # as the first start's command has it
        (["trainer.eval_steps=4"], 32),
        (["trainer.eval_blocks=50"], 50),
    ],
)
def test_earlier_run_keeps_its_evaluation_length(new: list[str], blocks: int) -> None:
    arguments = ["trainer.batch_size=4"]
    frozen = completed(earlier(arguments, 3))
    trainer = resumed(frozen, [*arguments, "trainer.eval_steps=3"], new)["trainer"]
    assert (trainer["eval_blocks"], trainer["eval_steps"]) == (blocks, None)


def test_new_evaluation_length_replaces_the_recorded_one() -> None:
    for first, second, blocks in (
        ("trainer.eval_steps=3", "trainer.eval_blocks=50", 50),
        ("trainer.eval_blocks=50", "trainer.eval_steps=3", 24),
    ):
        frozen = freeze(compose([first]))
        assert resumed(frozen, [first], [second])["trainer"]["eval_blocks"] == blocks


def test_earlier_run_reads_16_bit_tokens() -> None:
    old = completed(earlier(TOKENS, 20))
    assert build_data_config(old["data"]).dtype == "uint16"
    assert build_data_config(freeze(compose(TOKENS))["data"]).dtype == "auto"
    assert "dtype" not in resumed(old, TOKENS, TOKENS)["data"], "the first start's command"
    assert resumed(old, TOKENS, ["data.dtype=uint32"])["data"]["dtype"] == "uint32"


def test_earlier_run_keeps_its_split_of_the_embedded_text() -> None:
    old = completed(earlier([], 20))
    del old["data"]["split"]
    assert build_data_config(old["data"]).split == "tail"
    assert build_data_config(freeze(compose([]))["data"]).split == "sections"
    assert resumed(old, [], ["data=embedded", "trainer.max_steps=9"])["data"] == old["data"]


def test_earlier_run_keeps_the_end_of_every_epoch() -> None:
    old = completed(earlier([], 20))
    assert build_typed("train", old).checkpoint.keep_epochs == 10
    del old["checkpoint"]["keep_epochs"], old["data"]["split"]
    assert build_typed("train", old).checkpoint.keep_epochs is None
    assert build_typed("train", old).data.split == "tail"
    assert "keep_epochs" not in resumed(old, [], ["checkpoint=safe"])["checkpoint"]
