"""Exports, checks and restores optimizer state as plain data by parameter name."""

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gpt2ckpt.errors import CheckpointError

Expected: TypeAlias = Mapping[str, tuple[Collection[str] | None, torch.Size]]
"""Maps each parameter name to the names of its state tensors (None: not known) and its shape."""

_PLAIN = (bool, int, float, str, type(None))


def settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a parameter group, without its parameters and its learning rate."""
    skipped = ("params", "param_names", "lr")
    return {key: value for key, value in group.items() if key not in skipped}


def changed_settings(group: Mapping[str, Any], initial: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a parameter group that differ from the `initial` settings."""
    return {
        key: value
        for key, value in settings_of(group).items()
        if key not in initial or not _same(value, initial[key])
    }


def export_group(
    kind: str, group: Mapping[str, Any], base_lr: float, names: list[str]
) -> dict[str, Any]:
    """Return a parameter group as JSON values: its optimizer, parameter names and settings."""
    settings = {key: _plain(value) for key, value in settings_of(group).items()}
    return {"optimizer": kind, "params": names, "lr": float(base_lr), **settings}


def check_number(saved: Mapping[str, Any], key: str, count: int) -> list[dict[str, Any]]:
    """Return the list of `count` dicts under `key` in a saved state; empty dicts without `key`.

    Raises:
        CheckpointError: The list has a different length.
    """
    found = saved.get(key, [{} for _ in range(count)])
    if not isinstance(found, list) or len(found) != count:
        raise CheckpointError(
            f"the optimizer state does not fit: its {key} is not a list of {count} dicts; resume "
            "with the optimizer that the checkpoint was trained with"
        )
    return found


def check_states(saved: Mapping[str, Any], expected: Expected) -> None:
    """Check that a saved state belongs to the expected parameters.

    Raises:
        CheckpointError: The first parameter that does not match.
    """
    states = saved.get("state")
    names = _saved_names(saved)
    if not isinstance(states, Mapping) or names is None:
        raise CheckpointError(
            "the checkpoint has no readable optimizer state: resume from a different checkpoint"
        )
    names |= set(states)
    for name in sorted(names ^ set(expected)):
        where = "the checkpoint" if name in names else "this model"
        raise CheckpointError(
            f"the optimizer state does not fit: only {where} has the parameter '{name}'; "
            "resume with the model that the checkpoint was trained with"
        )
    for name, state in states.items():
        _check_state(name, state, *expected[name])


def check_shapes(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a saved tensor has a different shape than the expected one."""
    for name, state in saved.items():
        for key, tensor in state.items():
            wanted = expected.get(name, {}).get(key)
            if not (isinstance(tensor, Tensor) and isinstance(wanted, Tensor)):
                continue
            if tensor.shape != wanted.shape:
                raise _wrong_shape(name, key, tensor, wanted.shape)


def place_state(
    saved: Mapping[str, Any], parameter: Tensor, step_on_device: bool
) -> dict[str, Any]:
    """Return copies of the state of one parameter on the devices that its optimizer requires.

    Args:
        saved: Maps kinds of state to tensors, whose dtypes are kept, or to other values.
        parameter: The parameter, the device and sharding of which the copies get.
        step_on_device: Whether the step count is on the device of the parameter, as the fused
            kernels require; otherwise it is on the CPU.
    """
    step_device = parameter.device if step_on_device else torch.device("cpu")
    return {
        key: value.detach().to(step_device, copy=True)
        if key == "step" and isinstance(value, Tensor)
        else place(value, parameter)
        for key, value in saved.items()
    }


def place(value: Any, parameter: Tensor) -> Any:
    """Return a copy of a value, with its tensors on the device of `parameter`."""
    if isinstance(value, Mapping):
        return {key: place(item, parameter) for key, item in value.items()}
    if isinstance(value, list):
        return [place(item, parameter) for item in value]
    return _beside(parameter, value) if isinstance(value, Tensor) else value


def _beside(parameter: Tensor, tensor: Tensor) -> Tensor:
    placed = tensor.detach().to(parameter.device, copy=True)
    mesh: Any = getattr(parameter, "device_mesh", None)
    if mesh is None or tensor.shape != parameter.shape:
        return placed
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    return distribute_tensor(placed, mesh, parameter.placements, src_data_rank=None)


def _saved_names(saved: Mapping[str, Any]) -> set[str] | None:
    """Return the parameter names in the saved groups; None if there are no valid groups."""
    try:
        return {str(name) for group in saved["groups"] for name in group["params"]}
    except (KeyError, TypeError):
        return None


def _check_state(name: str, state: Any, keys: Collection[str] | None, shape: torch.Size) -> None:
    if keys is None and isinstance(state, Mapping):
        return
    if not isinstance(state, Mapping) or set(state) != set(keys or ()):
        held = ", ".join(sorted(state)) if isinstance(state, Mapping) else type(state).__name__
        wanted = f" instead of {', '.join(sorted(keys))}" if keys else ""
        raise CheckpointError(
            f"the optimizer state of '{name}' holds {held}{wanted}; resume with the optimizer that "
            "the checkpoint was trained with"
        )
    for key, tensor in state.items():
        expected = torch.Size() if key == "step" else shape
        if not isinstance(tensor, Tensor) or tensor.shape != expected:
            raise _wrong_shape(name, key, tensor, expected)


def _wrong_shape(name: str, key: str, value: Any, expected: torch.Size) -> CheckpointError:
    found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    return CheckpointError(
        f"the optimizer state {key} of '{name}' has the shape {found} instead of "
        f"{list(expected)}; resume with the model that the checkpoint was trained with"
    )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return bool(a == b)


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value if isinstance(value, _PLAIN) else str(value)
