"""The record `data.pkl` of a checkpoint, which plain `torch.load` reads.

gpt2ckpt never unpickles it. The layout is that of torch.save's zip format, which PyTorch keeps
readable (torch/serialization.py, `_save`): a tensor is a call of `_rebuild_tensor_v2` with a
persistent id ("storage", type, record, location, number of elements).
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._utils import _rebuild_tensor_v2

STORAGE_TYPES: dict[torch.dtype, type] = {
    torch.float32: torch.FloatStorage,
    torch.float64: torch.DoubleStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    numel: int


def pickle_state(state: dict[str, Any], storage_of: Callable[[Tensor], int]) -> bytes:
    """Return the pickled state, in which each tensor refers to the record `data/<storage_of>`."""
    buffer = io.BytesIO()
    _StatePickler(buffer, storage_of).dump(state)
    return buffer.getvalue()


class _StatePickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, storage_of: Callable[[Tensor], int]) -> None:
        super().__init__(buffer, protocol=2)
        self._storage_of = storage_of

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return ("storage", STORAGE_TYPES[obj.dtype], obj.key, "cpu", obj.numel)
        return None

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        storage = _Storage(str(self._storage_of(obj)), obj.dtype, obj.numel())
        shape, stride = tuple(obj.shape), obj.stride()
        return _rebuild_tensor_v2, (storage, 0, shape, stride, False, OrderedDict())
