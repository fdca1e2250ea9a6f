"""The optimizers of a run as one object, and the built-in AdamW and Muon.

Sources: AdamW, Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019). Muon, Keller
Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024): the momentum of
each matrix is orthogonalized by Newton-Schulz iterations before it is applied. Both are implemented
by torch.optim.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from gpt2ckpt.config import registry
from gpt2ckpt.config.options import Option
from gpt2ckpt.config.schema import AdamWConfig, MuonConfig
from gpt2ckpt.errors import CheckpointError, ConfigError
from gpt2ckpt.layers import hidden_matrices
from gpt2ckpt.optim.state import (
    changed_settings,
    check_number,
    check_shapes,
    check_states,
    export_group,
    place,
    place_state,
    settings_of,
)

FUSED_DEVICES = frozenset({"cpu", "cuda", "mps"})

NamedParameters = list[tuple[str, nn.Parameter]]


class OptimizerSet:
    """One or more torch optimizers, each for a part of a model's parameters, with one state.

    The state holds the tensors of `optimizer.state` by parameter name. It also holds settings of
    parameter groups that a step has changed, and state that an optimizer keeps under its own keys.

    A gradient scaler steps each optimizer separately. With float16, callers must therefore check
    the total gradient norm first, and skip all optimizers if it is not finite.

    Args:
        torch_optimizers: The optimizers. Reports show the learning rate of the first.
        model: The module whose parameters the optimizers train, without wrappers.
        option: The option that built them, which errors name.

    Raises:
        TypeError: An object is not a torch optimizer.
        ValueError: A parameter group has no learning rate, a parameter is not in the model, or two
            groups have the same parameter.
    """

    def __init__(
        self,
        torch_optimizers: Sequence[torch.optim.Optimizer],
        model: nn.Module,
        option: Option | None = None,
    ) -> None:
        self.option = option
        self.lr_scale = 1.0  # the factor of the learning rates of the last step
        _check_optimizers(torch_optimizers, model)
        self.torch_optimizers = list(torch_optimizers)
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._base_lrs = [group["lr"] for group in self._groups()]
        self._settings = [deepcopy(settings_of(group)) for group in self._groups()]

    @property
    def lr(self) -> float:
        """Return the current learning rate of the first optimizer."""
        return float(self.torch_optimizers[0].param_groups[0]["lr"])

    def step(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Update every parameter that has a gradient, by a gradient scaler where it is given.

        Raises:
            PluginError: An optimizer of a plugin raised an exception.
        """
        with self.option.named_errors() if self.option else nullcontext():
            for optimizer in self.torch_optimizers:
                if scaler is None:
                    optimizer.step()
                else:
                    scaler.step(optimizer)

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for optimizer in self.torch_optimizers:
            optimizer.zero_grad(set_to_none=True)

    def set_lr_scale(self, scale: float) -> None:
        """Set the learning rate of every group to its configured rate times `scale`."""
        self.lr_scale = scale
        for group, base_lr in zip(self._groups(), self._base_lrs, strict=True):
            group["lr"] = base_lr * scale

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield each trained parameter once."""
        for group in self._groups():
            yield from group["params"]

    def state_dict(self) -> dict[str, Any]:
        """Return the state by parameter name, independent of the order of the parameters.

        Returns:
            A dict with two entries, and two more where an optimizer needs them. `state` maps
            parameter names to their live tensors and numbers. `groups` lists the settings and
            parameter names of each group, for readers of a checkpoint, with the configured `lr`
            before the schedule. `group_state` has, for each group, the settings that steps have
            changed; `optimizer_state`, for each optimizer, the state that is of no parameter.
        """
        state = {
            name: dict(optimizer.state[parameter])
            for optimizer, name, parameter in self._named()
            if optimizer.state.get(parameter)
        }
        groups = [
            export_group(type(optimizer).__name__, group, base_lr, self._names_in(group))
            for (optimizer, group), base_lr in zip(
                self._groups_by_optimizer(), self._base_lrs, strict=True
            )
        ]
        more = {
            "group_state": [
                changed_settings(group, settings)
                for group, settings in zip(self._groups(), self._settings, strict=True)
            ],
            "optimizer_state": [_own_state(optimizer) for optimizer in self.torch_optimizers],
        }
        return {"state": state, "groups": groups} | {k: v for k, v in more.items() if any(v)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Copy the tensors of a `state_dict()`; on an error, nothing changes.

        Learning rates and other settings are not loaded, except for settings that steps have
        changed. A parameter without a saved state, which was never updated, stays without one.

        Raises:
            CheckpointError: Parameter names, kinds of state or shapes do not match.
        """
        targets = {name: (optimizer, param) for optimizer, name, param in self._named()}
        check_states(saved, {name: (_state_keys(o), p.shape) for name, (o, p) in targets.items()})
        groups, optimizers = list(self._groups()), self.torch_optimizers
        group_states = check_number(saved, "group_state", len(groups))
        own_states = check_number(saved, "optimizer_state", len(optimizers))
        for name, (optimizer, parameter) in targets.items():
            optimizer.state.pop(parameter, None)
            if name in saved["state"]:
                step_on_device = bool(optimizer.defaults.get("fused"))
                state = place_state(saved["state"][name], parameter, step_on_device)
                optimizer.state[parameter] = state
        for group, settings, changed in zip(groups, self._settings, group_states, strict=True):
            for key in settings_of(group).keys() - settings.keys():
                del group[key]
            group.update(deepcopy(settings) | place(changed, group["params"][0]))
        for optimizer, own in zip(optimizers, own_states, strict=True):
            by_key: dict[Any, Any] = optimizer.state
            for key in _own_state(optimizer):
                del by_key[key]
            by_key.update(place(own, optimizer.param_groups[0]["params"][0]))

    def check_step(self, saved: Mapping[str, Any], fresh: "OptimizerSet") -> None:
        """Raise CheckpointError if a step fails with a state that was just loaded.

        A step without a state must succeed first: otherwise nothing is known. Both sets are on the
        meta device, where a step computes shapes alone.

        Args:
            saved: The state that this set has loaded.
            fresh: The same optimizers without a state.
        """
        for parameter in [*self.parameters(), *fresh.parameters()]:
            parameter.grad = torch.zeros_like(parameter)
        try:
            fresh.step()
        except Exception:
            return  # it needs values
        check_shapes(saved["state"], fresh.state_dict()["state"])
        try:
            self.step()
        except Exception as error:
            raise CheckpointError(f"the saved state does not fit: {error}") from error

    def _groups_by_optimizer(self) -> Iterator[tuple[torch.optim.Optimizer, dict[str, Any]]]:
        for optimizer in self.torch_optimizers:
            for group in optimizer.param_groups:
                yield optimizer, group

    def _groups(self) -> Iterator[dict[str, Any]]:
        return (group for _, group in self._groups_by_optimizer())

    def _named(self) -> Iterator[tuple[torch.optim.Optimizer, str, nn.Parameter]]:
        for optimizer, group in self._groups_by_optimizer():
            for parameter in group["params"]:
                yield optimizer, self._names[id(parameter)], parameter

    def _names_in(self, group: Mapping[str, Any]) -> list[str]:
        return [self._names[id(parameter)] for parameter in group["params"]]


def build_optimizer(config: Any, model: nn.Module) -> OptimizerSet:
    """Return the optimizers that a config describes for the trainable parameters of `model`.

    Args:
        config: The typed config of an optimizer.
        model: The module without compiled or distributed wrappers, which would change the names of
            the parameters.

    Raises:
        PluginError: A plugin raised an exception, or did not return optimizers.
    """
    built = registry.build("optimizer", config, model)
    option = registry.option_of("optimizer", config)
    with option.named_errors():
        return OptimizerSet(built if isinstance(built, list) else [built], model, option)


def build_adamw(config: AdamWConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW for all parameters.

    Weight decay applies to matrices and embeddings, not to biases and norms. A tied parameter
    counts once, under its first name.
    """
    return _adamw(_named(model), config, config.lr)


def build_muon(config: MuonConfig, model: nn.Module) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the repeated layers, and AdamW for the other parameters.

    Raises:
        ConfigError: The model has no matrices for Muon.
    """
    named, matrices = _named(model), hidden_matrices(model)
    hidden = [(name, p) for name, p in named if p in matrices]
    others = [(name, p) for name, p in named if p not in matrices]
    if not hidden:
        raise ConfigError(
            "optimizer=muon trains the matrices of repeated layers, and the model has none: keep "
            "its layers in an nn.ModuleList, or choose optimizer=adamw"
        )
    adamw = [_adamw(others, config, config.adamw_lr)] if others else []
    return [_muon(hidden, config), *adamw]


def _check_optimizers(built: Sequence[Any], model: nn.Module) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen: set[int] = set()
    if not built:
        raise ValueError("the builder returned no optimizer")
    for optimizer in built:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"the builder returned a {type(optimizer).__name__}; it must return a torch "
                "optimizer or a list of them"
            )
        for group in optimizer.param_groups:
            if "lr" not in group:
                raise ValueError("a parameter group has no 'lr', which the schedule scales: set it")
            for parameter in group["params"]:
                if id(parameter) not in names:
                    raise ValueError(
                        "the optimizer has a parameter that is not in the model: pass only "
                        "parameters of the model"
                    )
                if id(parameter) in seen:
                    raise ValueError(
                        f"the parameter {names[id(parameter)]} is in two groups: pass it once"
                    )
                seen.add(id(parameter))


def _own_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state that does not belong to a parameter."""
    state: dict[Any, Any] = optimizer.state
    return {key: value for key, value in state.items() if isinstance(key, str)}


def _named(model: nn.Module) -> NamedParameters:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _adamw(
    named: NamedParameters, config: AdamWConfig | MuonConfig, lr: float
) -> torch.optim.Optimizer:
    matrices = [(name, p) for name, p in named if p.ndim >= 2]
    vectors = [(name, p) for name, p in named if p.ndim < 2]
    groups = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((matrices, config.weight_decay), (vectors, 0.0))
        if members
    ]
    beta1, beta2 = config.betas
    fused = named[0][1].device.type in FUSED_DEVICES
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), eps=config.eps, fused=fused)


def _muon(named: NamedParameters, config: MuonConfig) -> torch.optim.Optimizer:
    return torch.optim.Muon(
        named,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
        ns_steps=config.ns_steps,
    )


def _state_keys(optimizer: torch.optim.Optimizer) -> frozenset[str] | None:
    """Return the names of each parameter's state tensors after a step; None if not known."""
    if type(optimizer) is torch.optim.Muon:
        return frozenset({"momentum_buffer"})
    if type(optimizer) is torch.optim.AdamW:
        return frozenset({"step", "exp_avg", "exp_avg_sq"})
    return None
