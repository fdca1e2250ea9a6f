"""The tensors in the metadata of a checkpoint: their names, and checks against their bytes.

The tree holds `{"$tensor": [storage, dtype, shape]}` in place of a tensor, where `storage` is the
number of a record in the file (docs/format.md). This module does not import torch.
"""

import math
from collections.abc import Iterator
from typing import Any

from gpt2ckpt.errors import CheckpointError

TENSOR_KEY = "$tensor"
MOST_DIMENSIONS = 64  # of PyTorch
ITEM_SIZES = {  # bytes of one element of each dtype
    **{"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2},
    **{"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1},
}

Path = tuple[Any, str | int] | None  # the path of a container, and a key in that container


def walk(tree: dict[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Yield the path and the description of each tensor. No recursion: a file can nest deep."""
    stack: list[tuple[Path, Any]] = [(None, tree)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict) and TENSOR_KEY in value:
            yield path, value[TENSOR_KEY]
            continue
        items = value.items() if isinstance(value, dict) else enumerate(value)
        nested = [((path, key), item) for key, item in items if isinstance(item, dict | list)]
        stack += reversed(nested)


def dotted(path: Path) -> str:
    """Return the keys of a path joined by dots, the outermost first."""
    parts = []
    while path is not None:
        path, key = path
        parts.append(str(key))
    return ".".join(reversed(parts))


def name_of(tree: dict[str, Any], number: int) -> str:
    """Return the dotted name of the first tensor with the storage `number`."""
    users = (path for path, description in walk(tree) if description[0] == number)
    return dotted(next(users, (None, f"data/{number}")))


def check(tree: dict[str, Any], sizes: list[int]) -> None:
    """Raise CheckpointError unless the dtype and shape of each tensor fit its storage.

    `sizes` are the bytes of each storage.
    """
    for path, description in walk(tree):
        try:
            number, dtype, shape = description
            fits = len(shape) <= MOST_DIMENSIONS
            fits = fits and all(type(extent) is int and 0 <= extent < 1 << 63 for extent in shape)
            fits = fits and type(number) is int and 0 <= number < len(sizes)
            fits = fits and math.prod(shape) * ITEM_SIZES[dtype] == sizes[number]
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise CheckpointError(f"tensors.json does not describe the tensor {dotted(path)}")
