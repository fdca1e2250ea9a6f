"""Reading other programs' weight files. Nothing but tensors and plain containers is unpickled."""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2ckpt.errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; InputError when there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}. Check its permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object. Download it again.")
    return content


def read_pickle(path: Path) -> dict[str, Any]:
    """The dict in a file of torch.save, on the CPU, by torch's restricted unpickler.

    In the zip format tensors are mapped, not read: what is not used (an optimizer's state) costs
    nothing. A file that is damaged, or asks for code, is an InputError.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file; give the path of a saved model.")
    try:
        mapped = zipfile.is_zipfile(path)
        if mapped:
            _refuse_compressed(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # Bytes from anywhere make an unpickler fail in any way.
        raise InputError(
            f"{path} is neither a checkpoint nor a file of torch.save that can be loaded safely: "
            "it is damaged, or holds objects other than tensors, numbers, text, lists and dicts. "
            "Give a checkpoint, a Hugging Face GPT-2 folder or nanoGPT's ckpt.pt."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no dict of weights: give nanoGPT's ckpt.pt.")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors in a .safetensors file, or in a dict saved by torch.save."""
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    return {str(name): as_tensor(path, name, value) for name, value in content.items()}


def as_tensor(path: Path, name: object, value: object) -> Tensor:
    """`value`, if it is a tensor all of whose elements are in the file; else InputError.

    A view of few elements as many takes no room until it is converted, and then any room.
    """
    if not isinstance(value, Tensor):
        raise InputError(f"{path} holds something other than a tensor at '{name}'.")
    plain = value.layout is torch.strided and value.device.type == "cpu"
    if not plain or value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise InputError(f"{path} holds a tensor at '{name}' whose elements are not in the file.")
    return value


def _refuse_compressed(path: Path) -> None:
    """torch.save compresses nothing, and a few compressed bytes can unpack to any number."""
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type for info in archive.infolist()):
            raise ValueError("a record is compressed")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise InputError(f"{path} is missing. Download the folder again.")
    try:
        # Read, not mapped: a file that is rewritten meanwhile would end the process by SIGBUS.
        content: dict[str, Any] = load(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise InputError(
            f"{path} is not an intact safetensors file: {error}. Download it again."
        ) from error
    return content
