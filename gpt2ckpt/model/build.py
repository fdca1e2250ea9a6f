"""Builds the model of a config, and defines what training needs from a model.

A model maps token ids [B, T] to logits [B, T, V]. It may have a method `loss(tokens, targets)`,
which returns the mean cross entropy; otherwise the loss is computed from the logits.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2ckpt.config.schema import ModelConfig, ModelShape
from gpt2ckpt.model.gpt2 import GPT2

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Takes tokens and targets, int64 of shape [B, T]; returns the mean cross entropy, a scalar."""


def build_model(config: ModelShape) -> nn.Module:
    """Return a new model on the CPU, initialized with the global random generator.

    Raises:
        ConfigError: The shape is invalid.
    """
    assert isinstance(config, ModelConfig)
    return GPT2(config)


def build_on_meta(config: ModelShape) -> nn.Module:
    """Return the model on PyTorch's meta device: its tensors have shapes but no memory."""
    with torch.device("meta"):
        return build_model(config)


def loss_of(model: nn.Module) -> LossFunction:
    """Return the loss function of a model: its own, else the cross entropy of its logits."""
    own = getattr(model, "loss", None)
    if callable(own):
        function: LossFunction = own
        return function

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        logits = model(tokens)
        if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            raise ValueError(
                f"the model maps tokens of shape {list(tokens.shape)} to a tensor of shape "
                f"{list(logits.shape)}; logits have the shape [batch, tokens, vocabulary]"
            )
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return loss
