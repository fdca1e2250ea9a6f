"""Reads and writes Hugging Face's GPT-2 folders: config.json and the weights."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2ckpt.config.schema import END_OF_TEXT, ModelConfig
from gpt2ckpt.errors import InputError
from gpt2ckpt.model.gpt2 import INIT_STD, LAYER_NORM_EPS
from gpt2ckpt.model.tensor_files import read_json, read_tensors

CONFIG_FILE = "config.json"
OTHER_FOLDER = "Pass the folder of a standard GPT-2"
WEIGHTS_FILE = "model.safetensors"
# In order of preference. Weights may also be split into shards, which an index file names.
WEIGHT_FILES = (WEIGHTS_FILE, "pytorch_model.bin")
GELU_FORMS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "exact"}
SHAPE_KEYS = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "block_size": "n_positions",
    "vocab_size": "vocab_size",
}
# Options that change the logits, each with the only value that this model supports. These values
# are also the defaults of GPT2Config.
FIXED_OPTIONS: dict[str, Any] = {
    "layer_norm_epsilon": LAYER_NORM_EPS,
    "tie_word_embeddings": True,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
# Weights of Conv1D modules, stored as [in, out].
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# Causal masks, which older versions of transformers saved with the weights.
MASKS = (".attn.bias", ".attn.masked_bias")


def is_huggingface(path: Path) -> bool:
    """Return whether `path` is a folder with a config.json."""
    return path.is_dir() and (path / CONFIG_FILE).is_file()


def load_huggingface(folder: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the model config and the state dict (float32) of a GPT-2 folder.

    The config has the default dropout, because dropout is a setting of the training run.

    Raises:
        InputError: The folder has an option or a layer that this model does not support.
    """
    config = _read_config(folder / CONFIG_FILE)
    state: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        for name, tensor in read_tensors(file).items():
            if not name.endswith(MASKS):
                prefix = "" if name.startswith(("transformer.", "lm_head.")) else "transformer."
                state[prefix + name] = _to_linear(name, tensor)
    output, embedding = state.get("lm_head.weight"), state.get("transformer.wte.weight")
    if output is not None and embedding is not None and not torch.equal(output, embedding):
        raise InputError(
            f"{folder} has an untied output layer, and only models whose output layer is the token "
            "embedding can be read. Pass a different model"
        )
    if embedding is not None:
        state["lm_head.weight"] = embedding
    return config, state


def to_huggingface(
    state: dict[str, Tensor], config: ModelConfig
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the config.json of a model for transformers' GPT2LMHeadModel.

    The tied output layer is omitted, as in transformers; a model without biases gets zero biases.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "lm_head.weight":
            continue
        transposed = tensor.t() if name.endswith(CONV1D) else tensor
        tensors[name] = transposed.detach().to("cpu", torch.float32).contiguous()
        if name.endswith("weight") and not name.endswith(("wte.weight", "wpe.weight")):
            tensors.setdefault(name.removesuffix("weight") + "bias", torch.zeros(len(tensor)))
    return tensors, _config_json(config)


def save_huggingface(folder: Path, state: dict[str, Tensor], config: ModelConfig) -> None:
    """Write config.json and model.safetensors into `folder`, and create it if needed."""
    from safetensors.torch import save_file

    tensors, described = to_huggingface(state, config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        text = json.dumps(described, indent=2, sort_keys=True) + "\n"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error.strerror or error}. Pass a different folder"
        ) from error


def _config_json(config: ModelConfig) -> dict[str, Any]:
    special = END_OF_TEXT if config.vocab_size > END_OF_TEXT else None
    shape = {name: getattr(config, key) for key, name in SHAPE_KEYS.items()}
    return {
        **FIXED_OPTIONS,
        **shape,
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu" if config.gelu == "exact" else "gelu_new",
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "initializer_range": INIT_STD,
        "bos_token_id": special,
        "eos_token_id": special,
    }


def _read_config(path: Path) -> ModelConfig:
    """Return the model config of a config.json. Raises InputError for unsupported options."""
    found = read_json(path)
    activation = str(found.get("activation_function", "gelu_new"))
    kind = found.get("model_type")
    if kind != "gpt2":
        raise InputError(f"{path} has model_type {kind!r}; only 'gpt2' can be read. {OTHER_FOLDER}")
    if activation not in GELU_FORMS:
        choices = ", ".join(GELU_FORMS)
        raise InputError(
            f"{path} has activation_function {activation!r}; only {choices} can be read. "
            f"{OTHER_FOLDER}"
        )
    for option, needed in FIXED_OPTIONS.items():
        if found.get(option, needed) != needed:
            raise InputError(
                f"{path} has {option} {found[option]!r}; only {needed} can be read. {OTHER_FOLDER}"
            )
    shape = {}
    for key, name in SHAPE_KEYS.items():
        if not isinstance(found.get(name), int):
            raise InputError(f"{path} has no integer for {name}. Download the file again")
        shape[key] = found[name]
    if found.get("n_inner") not in (None, 4 * shape["n_embd"]):
        raise InputError(
            f"{path} has n_inner {found['n_inner']!r}; only 4 * n_embd can be read. {OTHER_FOLDER}"
        )
    return ModelConfig(**shape, gelu=GELU_FORMS[activation])


def _weight_files(folder: Path) -> list[Path]:
    """Return the weight files: a single file, or the shards that an index names."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = read_json(index).get("weight_map")
            names = set(parts.values()) if isinstance(parts, dict) else set()
            if not names or any(not isinstance(n, str) or Path(n).name != n for n in names):
                raise InputError(f"{index} lists no files of its folder. Download the file again")
            return [folder / part for part in sorted(names)]
    raise InputError(
        f"{folder} has no weights ({' or '.join(WEIGHT_FILES)}). Download the complete folder"
    )


def _to_linear(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor in float32, in the orientation [out, in]."""
    tensor = tensor.float()
    return tensor.t().contiguous() if name.endswith(CONV1D) and tensor.dim() == 2 else tensor
