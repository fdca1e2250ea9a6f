"""Pretrained weights for a new run: from Hugging Face, nanoGPT, or one of our own checkpoints."""

import dataclasses
from pathlib import Path

from torch import Tensor

from gpt2ckpt.checkpoint.reading import is_checkpoint, load
from gpt2ckpt.config.compose import parse_overrides
from gpt2ckpt.config.registry import build_model_config
from gpt2ckpt.config.replay import SHAPE
from gpt2ckpt.config.schema import ModelConfig
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.model.convert import load_pretrained
from gpt2ckpt.runs.layout import CHECKPOINTS
from gpt2ckpt.runs.resume import locate, read

POSITIONS = "transformer.wpe.weight"


def read_pretrained(
    config: ModelConfig, overrides: list[str]
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The weights that `config.init_from` names, and the model config that they set the shape of.

    A shorter model.block_size given among the `overrides` cuts the position embedding. Raises
    InputError for weights that cannot be used, ConfigError for another shape asked for outright.
    """
    path = Path(str(config.init_from)).expanduser()
    shape, weights = _read(path)
    asked = {
        override.key_or_group.removeprefix("model.") for override in parse_overrides(overrides)
    }
    for key in asked & set(SHAPE):
        wanted, there = getattr(config, key), getattr(shape, key)
        if key == "gelu":  # nanoGPT's files do not say which form they were trained with
            shape = dataclasses.replace(shape, gelu=wanted)
        elif key == "block_size" and wanted < there:
            shape = dataclasses.replace(shape, block_size=wanted)
            weights = {**weights, POSITIONS: weights[POSITIONS][:wanted]}
        elif wanted != there:
            raise ConfigError(
                f"model.{key}={wanted} contradicts {path}, which has {there}: leave model.{key} out"
            )
    settled = dataclasses.replace(shape, dropout=config.dropout, init_from=config.init_from)
    return settled, weights


def _read(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    if (path / CHECKPOINTS).is_dir():
        place = locate(str(path), None, path.parent)
        state = read(place).state if place else {}
    elif is_checkpoint(path):
        state = load(path)
    else:
        return load_pretrained(path)
    return build_model_config(state["config"]["model"]), state["model"]
