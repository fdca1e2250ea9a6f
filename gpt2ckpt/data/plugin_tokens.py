"""The tokens of a plugin's data source, checked at each read."""

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2ckpt.config.options import Option
from gpt2ckpt.errors import InputError

_COMPARED = 4096  # tokens that are read twice


class PluginTokens:
    """The tokens of an array, or of an object with a length and slices, as uint32 arrays.

    The object may compute the tokens of a slice on demand. Only one thread reads it at a time: the
    training thread, or the thread that computes the digest.

    Args:
        tokens: The array or object.
        name: The split, "train" or "val", for messages.
        option: The data source, for messages.
        vocab_size: The vocabulary size of the model; tokens must be smaller.

    Raises:
        InputError: There are no tokens, or two reads return different tokens.
        PluginError: The object has no length.
    """

    def __init__(self, tokens: Any, name: str, option: Option, vocab_size: int) -> None:
        self._tokens, self._name, self._option = tokens, f"{option}: {name}", option
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        with option.named_errors():
            self._count = len(tokens)
        if self._count == 0:
            raise InputError(f"{self._name} has no tokens: return at least one block of them")
        first = slice(0, min(self._count, _COMPARED))
        if not np.array_equal(self[first], self[first]):
            raise InputError(
                f"{self._name} returns different tokens each time it is read, so no resume would "
                "be exact: compute the tokens from the index and a seed in the config"
            )

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Return the size of all tokens in bytes."""
        return 4 * self._count

    def __getitem__(self, part: slice) -> npt.NDArray[np.uint32]:
        """Return the tokens of the contiguous `part`, shape [stop - start].

        Raises:
            InputError: The object did not return the requested integers, or a token is outside the
                vocabulary.
            PluginError: The object raised an exception.
        """
        start, stop, _ = part.indices(self._count)
        stop = max(start, stop)
        with self._lock, self._option.named_errors():
            tokens = np.asarray(self._tokens[start:stop])
        if tokens.shape != (stop - start,) or tokens.dtype.kind not in "iu":
            raise InputError(
                f"{self._name}[{start}:{stop}] has the shape {list(tokens.shape)} and the dtype "
                f"{tokens.dtype}; it must be {stop - start} integers in one dimension"
            )
        wrong = (tokens < 0) | (tokens >= self._vocab_size)
        if wrong.any():
            index = int(np.argmax(wrong))
            raise InputError(
                f"{self._name}[{start + index}] is {tokens[index]}; tokens must be at least 0 and "
                f"below model.vocab_size={self._vocab_size}"
            )
        return tokens.astype(np.uint32)
