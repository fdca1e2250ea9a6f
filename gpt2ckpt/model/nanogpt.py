"""Reads nanoGPT's ckpt.pt, a dict with `model`, `model_args` and the training state."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2ckpt.config.schema import ModelConfig
from gpt2ckpt.errors import InputError
from gpt2ckpt.model.tensor_files import as_tensor, read_pickle

# torch.compile puts this before all parameter names.
COMPILED_PREFIX = "_orig_mod."
SHAPE_KEYS = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
KNOWN_KEYS = {*SHAPE_KEYS, "bias", "dropout"}


def load_nanogpt(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the model config and the state dict (float32) of nanoGPT's ckpt.pt.

    nanoGPT has computed the exact GELU since June 2023 (its pull request 274), and before that the
    tanh form. The file does not record the form, so the exact one is assumed. The vocabulary keeps
    its size, usually padded to 50304. The config has the default dropout.

    Raises:
        InputError: The file is not a ckpt.pt of nanoGPT, or is damaged.
    """
    content = read_pickle(path)
    arguments, weights = content.get("model_args"), content.get("model")
    if not isinstance(arguments, dict) or not isinstance(weights, dict):
        raise InputError(
            f"{path} cannot be used: it is not a checkpoint of gpt2ckpt, nor one of nanoGPT, which "
            "has 'model' and 'model_args': pass a checkpoint, a Hugging Face GPT-2 folder or "
            "nanoGPT's ckpt.pt"
        )
    config = _read_shape(path, arguments)
    state = {}
    for name, tensor in weights.items():
        if not str(name).endswith(".attn.bias"):  # the causal mask of versions before PyTorch 2
            # Copied immediately, because nanoGPT overwrites its file in place: a later read of a
            # mapped page that was truncated would end the process by SIGBUS.
            copied = as_tensor(path, name, tensor).to(torch.float32, copy=True)
            state[str(name).removeprefix(COMPILED_PREFIX)] = copied
    return config, state


def _read_shape(path: Path, arguments: dict[str, Any]) -> ModelConfig:
    unknown = sorted(map(str, arguments.keys() - KNOWN_KEYS))
    if unknown:
        raise InputError(
            f"{path} has model_args that nanoGPT does not have: {', '.join(unknown)}. Pass the "
            "ckpt.pt of an unmodified nanoGPT"
        )
    for key in SHAPE_KEYS:
        if not isinstance(arguments.get(key), int):
            raise InputError(
                f"{path} has no integer for model_args['{key}']. Pass the ckpt.pt of an unmodified "
                "nanoGPT"
            )
    bias = bool(arguments.get("bias", True))
    config = ModelConfig(**{key: arguments[key] for key in SHAPE_KEYS}, bias=bias)
    return replace(config, gelu="exact")
