"""The built-in options: a plugin that is always on, without torch until something is built."""

from typing import TYPE_CHECKING, Any

from gpt2ckpt import extend
from gpt2ckpt.config import schema

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from gpt2ckpt.optim.schedule import Schedule


@extend.optimizer("adamw", schema.AdamWConfig)
def _adamw(config: schema.AdamWConfig, model: "nn.Module") -> "torch.optim.Optimizer":
    from gpt2ckpt.optim.optimizers import build_adamw

    return build_adamw(config, model)


@extend.optimizer("muon", schema.MuonConfig)
def _muon(config: schema.MuonConfig, model: "nn.Module") -> "list[torch.optim.Optimizer]":
    from gpt2ckpt.optim.optimizers import build_muon

    return build_muon(config, model)


@extend.schedule("cosine", schema.CosineConfig)
def _cosine(config: schema.CosineConfig, total_steps: int) -> "Schedule":
    from gpt2ckpt.optim.schedule import build_cosine

    return build_cosine(config, total_steps)


@extend.schedule("wsd", schema.WsdConfig)
def _wsd(config: schema.WsdConfig, total_steps: int) -> "Schedule":
    from gpt2ckpt.optim.schedule import build_wsd

    return build_wsd(config, total_steps)


@extend.schedule("constant", schema.ConstantConfig)
def _constant(config: schema.ConstantConfig, total_steps: int) -> "Schedule":
    from gpt2ckpt.optim.schedule import build_constant

    return build_constant(config)


@extend.model("gpt2", schema.ModelConfig)
def _gpt2(config: schema.ModelConfig) -> "nn.Module":
    from gpt2ckpt.model.gpt2 import GPT2

    return GPT2(config)


@extend.data("tokens", schema.TokensDataConfig)
@extend.data("text", schema.TextDataConfig)
@extend.data("embedded", schema.EmbeddedDataConfig)
def _data(config: Any) -> Any:
    """Return the config itself: `gpt2ckpt.data.corpus` opens the files that it names."""
    return config


@extend.logger("standard", schema.LoggerConfig)
def _loggers(config: schema.LoggerConfig, directory: "Path") -> None:
    """Return no logger: those of LoggerConfig are beside that of any option."""
