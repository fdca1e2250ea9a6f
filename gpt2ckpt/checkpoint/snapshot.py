"""A copy of a state in memory, for saves in the background.

A copy into new memory takes ten times as long as a copy into used memory, because of page faults.
So the buffers are allocated at the first save and used again for every later save.
"""

import json
from typing import Any

import torch
from torch import Tensor

from gpt2ckpt.checkpoint import format, zip_container

MOST_JSON = zip_container.LARGEST_RECORD // 4  # bytes; the rest of the record is for other entries


class Staging:
    """Host memory for one state. A snapshot is valid until the next `take`."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._devices: set[torch.device] = set()  # GPUs that tensors are copied from

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of `state` with contiguous tensors on the CPU, in the reused buffers.

        Tensors that share memory (tied weights) also share it in the copy. Copies from a GPU run at
        the same time, and are complete on return.
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
    """Return `value` with every tensor contiguous on the CPU, copied only if necessary."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu").contiguous()
    if isinstance(value, dict):
        return {key: on_host(item) for key, item in value.items()}
    if isinstance(value, list):
        return [on_host(item) for item in value]
    return value


def storable_copy(state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a state dict that a checkpoint can hold; tensors stay on their devices.

    Raises:
        TypeError: It holds a value that a checkpoint cannot hold.
        ValueError: It nests too deep, or its values other than tensors are too large.
    """
    if not isinstance(state, dict):
        raise TypeError(f"a state is a dict, not {type(state).__name__}")
    if format.nests_beyond(state, format.MOST_LEVELS - 2):
        raise ValueError(f"the state nests more than {format.MOST_LEVELS - 2} levels deep")
    copied = format.plain(state, _clone)
    size = len(json.dumps(format.plain(copied, lambda tensor: list(tensor.shape))))
    if size > MOST_JSON:
        raise ValueError(f"its values other than tensors take {size:,} bytes of JSON")
    assert isinstance(copied, dict)
    return copied


def _clone(tensor: Tensor) -> Tensor:
    if tensor.is_meta or hasattr(tensor, "to_local"):
        raise TypeError("a checkpoint cannot hold a tensor without data or a shard of one")
    return tensor.detach().clone(memory_format=torch.contiguous_format)
