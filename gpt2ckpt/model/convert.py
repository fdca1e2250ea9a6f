"""Loads pretrained weights: detects their format and checks their shapes."""

from pathlib import Path

from torch import Tensor

from gpt2ckpt.config.schema import ModelConfig, ModelShape
from gpt2ckpt.errors import ConfigError, InputError
from gpt2ckpt.model.build import build_on_meta
from gpt2ckpt.model.huggingface import is_huggingface, load_huggingface
from gpt2ckpt.model.nanogpt import load_nanogpt


def load_pretrained(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return the model config and the state dict of a Hugging Face folder or nanoGPT's ckpt.pt.

    The config has the default dropout. The tensors are float32 and have the names and shapes of
    `GPT2.state_dict`.

    Raises:
        InputError: The weights cannot be used.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: pass a Hugging Face GPT-2 folder or a ckpt.pt")
    if path.is_dir() and not is_huggingface(path):
        raise InputError(
            f"{path} is not a Hugging Face folder: it has no config.json. Pass a Hugging Face "
            "GPT-2 folder, nanoGPT's ckpt.pt or a checkpoint"
        )
    config, state = load_huggingface(path) if path.is_dir() else load_nanogpt(path)
    try:
        problem = check_shapes(config, state)
    except ConfigError as error:
        raise InputError(f"{path} cannot be used: {error}") from error
    if problem:
        raise InputError(f"{path} cannot be used: {problem}. Pass the weights of a GPT-2")
    return config, state


def check_shapes(config: ModelShape, state: dict[str, Tensor]) -> str | None:
    """Return the first difference between a state dict and the model of `config`; None if equal.

    The layers of a GPT-2 are counted before the model is built, because an untrusted config may
    name millions of layers.
    """
    if isinstance(config, ModelConfig):
        layers = {name.split(".")[2] for name in state if name.startswith("transformer.h.")}
        missing = next((i for i in range(config.n_layer) if str(i) not in layers), None)
        if missing is not None:
            return f"the weights lack transformer.h.{missing}.ln_1.weight"
    try:
        model = build_on_meta(config)
    except (RuntimeError, OverflowError, TypeError):  # TypeError: the size overflows 64 bits
        return "its config describes a model of a size that cannot be built"
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in state:
            return f"the weights lack {name}"
        found = tuple(state[name].shape)
        if found != shape:
            return f"the weights have {name} of shape {found}, but the model needs {shape}"
    unknown = sorted(state.keys() - expected.keys())
    return f"the weights have {unknown[0]}, which the model does not have" if unknown else None
