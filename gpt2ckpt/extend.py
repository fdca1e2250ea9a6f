"""Extension points: add a model, data source, optimizer, schedule, logger or callback.

A module of your own registers a builder with one of the decorators, and `plugins=[my_module]`
switches it on; docs/extending.md has complete examples. Does not import torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from gpt2ckpt.config.options import Option, register, setting
from gpt2ckpt.config.schema import LoggerConfig

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "LoggerConfig",
    "TokenData",
    "callback",
    "data",
    "decay_groups",
    "logger",
    "model",
    "optimizer",
    "schedule",
    "setting",
]

Builder = TypeVar("Builder", bound=Callable[..., Any])


def model(name: str, config: type) -> Callable[[Builder], Builder]:
    """Register `build(config)`, which returns a module that maps tokens [B, T] to logits [B, T, V].

    The module may have `loss(tokens, targets)`, which returns a scalar; else the loss is the cross
    entropy of the logits. `config` has the fields `block_size` and `vocab_size`.
    """
    return _registering("model", name, config)


def data(name: str, config: type) -> Callable[[Builder], Builder]:
    """Register `build(config)`, which returns TokenData."""
    return _registering("data", name, config)


def optimizer(name: str, config: type) -> Callable[[Builder], Builder]:
    """Register `build(config, model)`, which returns one torch optimizer or a list of them.

    The state is saved if it is in `optimizer.state` and `optimizer.param_groups`, as torch's
    optimizers keep it. Each parameter group has `lr`, which the schedule scales.
    """
    return _registering("optimizer", name, config)


def schedule(name: str, config: type) -> Callable[[Builder], Builder]:
    """Register `build(config, total_steps)`, which returns a function of the steps done.

    The function returns the factor of the next step's learning rate, from 0 to 1.
    """
    return _registering("schedule", name, config)


def logger(name: str, config: type) -> Callable[[Builder], Builder]:
    """Register `build(config, directory)`, which returns an object with methods of a logger.

    These are any of `history(events)`, which gets the earlier events of the run, `log(event)`,
    `text(step, text)`, `flush()` and `close()`. If `config` inherits LoggerConfig, TensorBoard and
    W&B can be on beside it.
    """
    return _registering("logger", name, config)


def callback(name: str, config: type) -> Callable[[Builder], Builder]:
    """Register `build(config)`, which returns an object with any of the hooks of a callback.

    These are `on_run_start(run)`, `on_step_end(run, metrics)`, `on_evaluation_end(run, metrics)`,
    `on_checkpoint_saved(run, path)` and `on_run_end(run)`. An object with `state_dict()` and
    `load_state_dict(state)` has its state saved in checkpoints.
    """
    return _registering("callback", name, config)


def _registering(group: str, name: str, config: type) -> Callable[[Builder], Builder]:
    def decorate(build: Builder) -> Builder:
        register(Option(group, name, config, build, module=build.__module__))
        return build

    return decorate


@dataclass(frozen=True)
class TokenData:
    """Tokens to train and to validate on.

    Attributes:
        train: The training tokens: a one-dimensional numpy array of integers, or an object with
            `len()` whose slices are such arrays.
        val: The validation tokens.
        description: One line for messages.
    """

    train: Any
    val: Any
    description: str = ""


def decay_groups(model: "nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """Return the usual two parameter groups of an optimizer.

    Weight decay applies to matrices and embeddings, not to biases and norms. Parameters without a
    gradient are left out, and a tied parameter counts once.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [(matrices, weight_decay), (vectors, 0.0)]
    return [{"params": part, "weight_decay": decay} for part, decay in groups if part]
