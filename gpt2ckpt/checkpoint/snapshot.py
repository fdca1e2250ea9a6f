"""A copy of a state in memory, for saves in the background.

Copying into new memory takes ten times as long as into used memory (page faults), so the buffers
are allocated at the first save and used again for every later save.
"""

from typing import Any

import torch
from torch import Tensor


class Staging:
    """Host memory for one state. A snapshot is valid until the next `take`."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._devices: set[torch.device] = set()  # GPUs that tensors are copied from

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of `state` with contiguous tensors on the CPU, in the buffers of this.

        Tensors that share memory (tied weights) share it in the copy. Copies from a GPU overlap one
        another, and are complete on return.
        """
        staged: dict[Any, Tensor] = {}
        copy = self._copy(state, "", staged)
        for device in self._devices:
            torch.cuda.synchronize(device)
        assert isinstance(copy, dict)
        return copy

    def _copy(self, value: Any, path: str, staged: dict[Any, Tensor]) -> Any:
        if isinstance(value, Tensor):
            same = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            key = same if value.numel() else path
            if key not in staged:
                staged[key] = self._stage(value.detach(), path)
            return staged[key]
        if isinstance(value, dict):
            return {key: self._copy(item, f"{path}/{key}", staged) for key, item in value.items()}
        if isinstance(value, list):
            return [self._copy(item, f"{path}/{i}", staged) for i, item in enumerate(value)]
        return value

    def _stage(self, tensor: Tensor, path: str) -> Tensor:
        if tensor.device.type == "cuda":
            self._devices.add(tensor.device)
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            pinned = tensor.device.type == "cuda"  # else the copy would block
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self._buffers[path] = buffer
        return buffer.copy_(tensor, non_blocking=True)


def on_host(value: Any) -> Any:
    """Return `value` with every tensor contiguous on the CPU, copied only if that is necessary."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu").contiguous()
    if isinstance(value, dict):
        return {key: on_host(item) for key, item in value.items()}
    if isinstance(value, list):
        return [on_host(item) for item in value]
    return value
