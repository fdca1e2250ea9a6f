"""nanoGPT's ckpt.pt: a dict of torch.save with `model`, `model_args` and the training's state."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2ckpt.config.schema import ModelConfig
from gpt2ckpt.errors import InputError
from gpt2ckpt.model.tensor_files import as_tensor, read_pickle

# What torch.compile puts before every name.
COMPILED_PREFIX = "_orig_mod."
SHAPE_KEYS = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
KNOWN_KEYS = {*SHAPE_KEYS, "bias", "dropout"}


def load_nanogpt(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Shape and float32 state of a ckpt.pt; InputError for a file that is none.

    nanoGPT has computed the exact GELU since June 2023 (its pull request 274), and the tanh form
    before; the file does not say which. The present form is assumed. The vocabulary stays as it is,
    usually padded to 50304; the dropout is left at its default: it belongs to the training.
    """
    content = read_pickle(path)
    arguments, weights = content.get("model_args"), content.get("model")
    if not isinstance(arguments, dict) or not isinstance(weights, dict):
        raise InputError(
            f"{path} is neither a checkpoint of this program nor one of nanoGPT, which has 'model' "
            "and 'model_args'. Give a checkpoint, a Hugging Face GPT-2 folder or nanoGPT's ckpt.pt."
        )
    config = _read_shape(path, arguments)
    state = {}
    for name, tensor in weights.items():
        if not str(name).endswith(".attn.bias"):  # the causal mask of versions before PyTorch 2
            whole = as_tensor(path, name, tensor)
            # Copied at once: nanoGPT rewrites its file in place, and a mapped page that is gone
            # ends the process by SIGBUS, up to the moment when the model is built.
            copied = whole.to(torch.float32, copy=True)
            state[str(name).removeprefix(COMPILED_PREFIX)] = copied
    return config, state


def _read_shape(path: Path, arguments: dict[str, Any]) -> ModelConfig:
    unknown = sorted(map(str, arguments.keys() - KNOWN_KEYS))
    if unknown:
        raise InputError(f"{path} has model_args that nanoGPT does not know: {', '.join(unknown)}.")
    for key in SHAPE_KEYS:
        if not isinstance(arguments.get(key), int):
            raise InputError(f"{path} gives no whole number for model_args['{key}'].")
    bias = bool(arguments.get("bias", True))
    config = ModelConfig(**{key: arguments[key] for key in SHAPE_KEYS}, bias=bias)
    return replace(config, gelu="exact")
