"""Whether a state out of a file holds what a run needs to go on, before anything is done with it.

The digests of a checkpoint say that it is as it was written, and not who wrote it.
"""

import re
from collections.abc import Callable
from typing import Any

from gpt2ckpt.errors import CheckpointError


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _loss(value: Any) -> bool:
    return value is None or type(value) in (float, int)


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


FORMS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("step", "epoch", "tokens_seen"), _count),
    **dict.fromkeys(("train_loss", "val_loss", "best_val_loss"), _loss),
    **dict.fromkeys(("config", "data", "environment", "model", "optimizer", "rng"), _mapping),
    **dict.fromkeys(("run", "scaler", "versions"), _mapping),
    "best_step": lambda value: value is None or _count(value),
    "overrides": _words,
}
INNER: dict[str, dict[str, Callable[[Any], bool]]] = {
    "run": {  # the id becomes part of file names
        "id": lambda value: isinstance(value, str) and bool(re.fullmatch(r"[\w-]+", value)),
        "parent": lambda value: value is None or _mapping(value),
    },
    "data": {
        "digest": lambda value: isinstance(value, str),
        **dict.fromkeys(("position", "evaluated_step"), _count),
    },
    "config": {"name": lambda value: isinstance(value, str)},
}


def check_resumable(state: dict[str, Any], name: object) -> None:
    """Raise CheckpointError naming the first entry of the state in file `name` that is not usable.

    Tensors are not looked at here: the model and the optimizer compare them with their own.
    """
    for key, fits in FORMS.items():
        if key not in state or not fits(state[key]):
            raise CheckpointError(f"{name} cannot be resumed: {key} is missing or unusable in it")
    for outer, forms in INNER.items():
        for key, fits in forms.items():
            if key not in state[outer] or not fits(state[outer][key]):
                raise CheckpointError(
                    f"{name} cannot be resumed: {outer}.{key} is missing or unusable in it"
                )
