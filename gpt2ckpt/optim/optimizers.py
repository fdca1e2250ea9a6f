"""AdamW and Muon, with one interface.

Sources: AdamW, Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019). Muon, Keller
Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024): the momentum of
each matrix is orthogonalized by Newton-Schulz iterations before it is applied. Both are the
implementations of torch.optim.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from gpt2ckpt.config.schema import AdamWConfig, MuonConfig
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.layers import hidden_matrices
from gpt2ckpt.optim.limits import check_optimizer
from gpt2ckpt.optim.state import check_states, export_group, place_state

FUSED_DEVICES = frozenset({"cpu", "cuda", "mps"})

NamedParameters = list[tuple[str, nn.Parameter]]


class OptimizerSet:
    """One or two torch optimizers, each for a part of a model's parameters.

    A gradient scaler steps each optimizer separately. With float16, callers must therefore check
    the total gradient norm first, and skip all optimizers if it is not finite.

    Args:
        torch_optimizers: Optimizers built from named parameters. Reports show the learning rate of
            the first.
    """

    def __init__(self, torch_optimizers: list[torch.optim.Optimizer]) -> None:
        self.torch_optimizers = torch_optimizers
        self._base_lrs = [group["lr"] for group in self._groups()]

    @property
    def lr(self) -> float:
        """Return the current learning rate of the first optimizer."""
        return float(self.torch_optimizers[0].param_groups[0]["lr"])

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for optimizer in self.torch_optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for optimizer in self.torch_optimizers:
            optimizer.zero_grad(set_to_none=True)

    def set_lr_scale(self, scale: float) -> None:
        """Set the learning rate of every group to its configured rate times `scale`."""
        for group, base_lr in zip(self._groups(), self._base_lrs, strict=True):
            group["lr"] = base_lr * scale

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield each trained parameter once."""
        for group in self._groups():
            yield from group["params"]

    def state_dict(self) -> dict[str, Any]:
        """Return the state by parameter name, independent of the order of the parameters.

        Returns:
            A dict with two entries. `state` maps parameter names to their live tensors. `groups`
            lists the settings and parameter names of each group, for readers of a checkpoint, with
            the configured `lr` before the schedule.
        """
        state = {
            name: dict(optimizer.state[parameter])
            for optimizer, name, parameter in self._named()
            if optimizer.state.get(parameter)
        }
        groups = [
            export_group(type(optimizer).__name__, group, base_lr)
            for (optimizer, group), base_lr in zip(
                self._groups_by_optimizer(), self._base_lrs, strict=True
            )
        ]
        return {"state": state, "groups": groups}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Copy the tensors of a `state_dict()`; on an error, nothing changes.

        Learning rates and other settings are not loaded: the optimizers keep those they were built
        with. A parameter without a saved state, which was never updated, stays without one.

        Raises:
            CheckpointError: Parameter names, kinds of state or shapes do not match.
        """
        targets = {name: (optimizer, param) for optimizer, name, param in self._named()}
        check_states(saved, {name: (_state_keys(o), p.shape) for name, (o, p) in targets.items()})
        for name, (optimizer, parameter) in targets.items():
            optimizer.state.pop(parameter, None)
            if name in saved["state"]:
                step_on_device = bool(optimizer.defaults.get("fused"))
                state = place_state(saved["state"][name], parameter, step_on_device)
                optimizer.state[parameter] = state

    def _groups_by_optimizer(self) -> Iterator[tuple[torch.optim.Optimizer, dict[str, Any]]]:
        for optimizer in self.torch_optimizers:
            for group in optimizer.param_groups:
                yield optimizer, group

    def _groups(self) -> Iterator[dict[str, Any]]:
        return (group for _, group in self._groups_by_optimizer())

    def _named(self) -> Iterator[tuple[torch.optim.Optimizer, str, nn.Parameter]]:
        for optimizer, group in self._groups_by_optimizer():
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                yield optimizer, name, parameter


def build_optimizer(
    config: AdamWConfig | MuonConfig, model: nn.Module, device_type: str
) -> OptimizerSet:
    """Return the optimizer that `config` describes for the trainable parameters of `model`.

    Weight decay applies to matrices and embeddings, not to biases and norms. A tied parameter
    counts once, under its first name.

    Args:
        config: AdamW for all parameters, or Muon for the matrices of the repeated layers and AdamW
            for the others.
        model: The module without compiled or distributed wrappers, which would change the names of
            the parameters.
        device_type: Device of the parameters ("cpu", "cuda", "mps"), which selects fused kernels.

    Raises:
        ConfigError: A setting is out of range, or the model has no matrices for Muon.
    """
    check_optimizer(config)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    fused = device_type in FUSED_DEVICES
    if isinstance(config, AdamWConfig):
        return OptimizerSet([_adamw(named, config, config.lr, fused)])
    matrices = hidden_matrices(model)
    hidden = [(name, p) for name, p in named if p in matrices]
    others = [(name, p) for name, p in named if p not in matrices]
    if not hidden:
        raise ConfigError(
            "optimizer=muon trains the matrices of repeated layers, and the model has none: keep "
            "its layers in an nn.ModuleList, or choose optimizer=adamw"
        )
    adamw = [_adamw(others, config, config.adamw_lr, fused)] if others else []
    return OptimizerSet([_muon(hidden, config), *adamw])


def _adamw(
    named: NamedParameters, config: AdamWConfig | MuonConfig, lr: float, fused: bool
) -> torch.optim.Optimizer:
    matrices = [(name, p) for name, p in named if p.ndim >= 2]
    vectors = [(name, p) for name, p in named if p.ndim < 2]
    groups = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((matrices, config.weight_decay), (vectors, 0.0))
        if members
    ]
    beta1, beta2 = config.betas
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


def _state_keys(optimizer: torch.optim.Optimizer) -> frozenset[str]:
    """Return the names of the tensors that the optimizer keeps for each parameter."""
    if isinstance(optimizer, torch.optim.Muon):
        return frozenset({"momentum_buffer"})
    return frozenset({"step", "exp_avg", "exp_avg_sq"})
