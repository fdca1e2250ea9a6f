"""Builds the model of a config, and defines what training needs from a model.

A model maps token ids [B, T] to logits [B, T, V]. It may have a method `loss(tokens, targets)`,
which returns the mean cross entropy; otherwise the loss is computed from the logits.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2ckpt.config import registry
from gpt2ckpt.config.options import PluginError
from gpt2ckpt.config.schema import ModelShape

LossFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Takes tokens and targets, int64 of shape [B, T]; returns the mean cross entropy, a scalar."""


def build_model(config: ModelShape) -> nn.Module:
    """Return a new model on the CPU, initialized with the global random generator.

    Args:
        config: The typed config of a model.

    Raises:
        ConfigError: The shape is invalid.
        PluginError: A plugin raised an exception, or did not return a module.
    """
    model = registry.build("model", config)
    if not isinstance(model, nn.Module):
        raise PluginError(
            f"{registry.option_of('model', config)}: the builder returned a "
            f"{type(model).__name__}; it must return a torch.nn.Module"
        )
    return model


def build_on_meta(config: ModelShape) -> nn.Module:
    """Return the model on PyTorch's meta device: its tensors have shapes but no memory.

    A plugin's model that computes with values in its constructor is built on the CPU instead.
    """
    try:
        with torch.device("meta"):
            return build_model(config)
    except PluginError:
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
                f"it maps tokens of shape {list(tokens.shape)} to a tensor of shape "
                f"{list(logits.shape)}; logits have the shape [batch, tokens, vocabulary]"
            )
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return loss


def with_named_errors(config: ModelShape, loss: LossFunction) -> LossFunction:
    """Return a loss function that raises PluginError where a plugin's model fails."""
    option = registry.option_of("model", config)
    if option.is_built_in:
        return loss

    def named(tokens: Tensor, targets: Tensor) -> Tensor:
        with option.named_errors():
            value = loss(tokens, targets)
            if value.ndim:
                raise ValueError(f"its loss has the shape {list(value.shape)}; it must be a scalar")
            return value

    return named
