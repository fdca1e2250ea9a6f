"""The recipes in conf/experiment/ have the length and the batch that their pages state."""

import pytest

from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.config.registry import build_typed


@pytest.mark.parametrize(
    ("name", "optimizer", "billions"),
    [("gpt2_small", "adamw", 10.0), ("gpt2_small_speedrun", "muon", 1.7)],
)
def test_recipe_for_one_gpu_has_its_stated_tokens(
    name: str, optimizer: str, billions: float
) -> None:
    data = ["data=tokens", "data.train=train.bin", "data.val=val.bin"]
    config = build_typed("train", compose_config("train", [f"experiment={name}", *data]).values)
    trainer = config.trainer
    tokens = trainer.batch_size * trainer.grad_accum * config.model.block_size
    assert tokens == 524_288
    assert round(tokens * trainer.max_steps / 1e9, 1) == billions
    assert config.optimizer.kind == optimizer
    assert config.name == name
