"""Reads weight files of other programs. Only tensors and plain containers are unpickled."""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2ckpt.errors import InputError
from gpt2ckpt.files.permissions import unreadable_message


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`. Raises InputError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable_message(path, error) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}. Download the file again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object. Download the file again")
    return content


def read_pickle(path: Path) -> dict[str, Any]:
    """Return the dict in a file of torch.save, loaded on the CPU with weights_only=True.

    In the zip format, tensors are mapped, so that unused ones (an optimizer state) are not read.

    Raises:
        InputError: The file is damaged, has no dict, or would run code.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file: pass the path of a saved model")
    try:
        mapped = zipfile.is_zipfile(path)
        if mapped:
            _refuse_compressed(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise unreadable_message(path, error) from error
    except Exception as error:  # arbitrary bytes raise arbitrary errors
        raise InputError(
            f"{path} cannot be used: it is not a checkpoint of gpt2ckpt, and torch.load refuses it "
            "(it is damaged, or holds more than plain weights): pass a checkpoint, a Hugging Face "
            "GPT-2 folder or nanoGPT's ckpt.pt"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a dict of weights: pass nanoGPT's ckpt.pt")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the named tensors of a .safetensors file, or of a dict saved by torch.save."""
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    return {str(name): as_tensor(path, name, value) for name, value in content.items()}


def as_tensor(path: Path, name: object, value: object) -> Tensor:
    """Return `value` if it is a tensor with all its elements in the file; else raise InputError.

    Otherwise a small file could fill the memory: a tensor that repeats a few elements (an expanded
    view) is small in the file, and has its full size once converted.
    """
    if not isinstance(value, Tensor):
        raise InputError(
            f"{path} has something other than a tensor at '{name}'. Pass a file of weights only"
        )
    plain = value.layout is torch.strided and value.device.type == "cpu"
    if not plain or value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise InputError(
            f"{path} has a tensor at '{name}' with elements that are not in the file. Save a copy "
            "of the tensor (contiguous, on the CPU)"
        )
    return value


def _refuse_compressed(path: Path) -> None:
    """Refuse compressed records, which may unpack to any size. torch.save writes none."""
    with zipfile.ZipFile(path) as archive:
        if any(info.compress_type for info in archive.infolist()):
            raise ValueError("a record is compressed")


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise InputError(f"{path} is missing. Download the folder again")
    try:
        # Read instead of mapped: a file that is truncated meanwhile would end the process (SIGBUS).
        content: dict[str, Any] = load(path.read_bytes())
    except OSError as error:
        raise unreadable_message(path, error) from error
    except SafetensorError as error:
        raise InputError(
            f"{path} is not an intact safetensors file: {error}. Download the file again"
        ) from error
    return content
