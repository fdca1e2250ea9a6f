"""Malicious weight files: one error message, and no memory beyond the size of the file."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gpt2ckpt.config.schema import ModelConfig
from gpt2ckpt.errors import InputError
from gpt2ckpt.model.convert import check_shapes, load_pretrained
from gpt2ckpt.model.tensor_files import read_json, read_pickle

ARGS = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 4, "vocab_size": 16, "bias": False}


def ckpt(path: Path, weights: dict[str, Any], **arguments: Any) -> Path:
    torch.save({"model": weights, "model_args": {**ARGS, **arguments}}, path)
    return path


def test_missing_layers_are_detected_before_building(tmp_path: Path) -> None:
    path = ckpt(tmp_path / "ckpt.pt", {"transformer.h.0.x": torch.ones(1)}, n_layer=10**12)
    with pytest.raises(InputError, match=r"lack transformer\.h\.1\.ln_1\.weight"):
        load_pretrained(path)


@pytest.mark.parametrize("size", [2**40, 2**62, 2**63 - 1, -1])
def test_width_beyond_memory_is_refused(size: int, tmp_path: Path) -> None:
    path = ckpt(tmp_path / "ckpt.pt", {"transformer.h.0.x": torch.ones(1)}, n_embd=size, n_head=1)
    with pytest.raises(InputError, match="cannot be used"):
        load_pretrained(path)


def test_expanded_view_of_one_element_is_refused(tmp_path: Path) -> None:
    huge = torch.ones(1, dtype=torch.float16).expand(1 << 40)
    with pytest.raises(InputError, match="with elements that are not in the file"):
        load_pretrained(ckpt(tmp_path / "ckpt.pt", {"transformer.wte.weight": huge}))


def test_compressed_record_is_refused_unread(tmp_path: Path) -> None:
    plain, bomb = tmp_path / "plain.pt", tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(4)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", 8) as target:
        for name in source.namelist():
            more = bytes(1 << 24) if name.endswith("data.pkl") else b""
            target.writestr(name, source.read(name) + more)
    assert bomb.stat().st_size < 1 << 16
    with pytest.raises(InputError, match="damaged"):
        read_pickle(bomb)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_pickle_bomb_is_refused(form: str, tmp_path: Path) -> None:
    path, crater = tmp_path / "ckpt.pt", tmp_path / "crater"
    content = {"model": {"w": Bomb(crater)}, "model_args": ARGS}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(InputError):
        load_pretrained(path)
    assert not crater.exists()


def folder(tmp_path: Path, config: bytes) -> Path:
    save_file({"wte.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(config)
    return tmp_path


@pytest.mark.parametrize(
    "content",
    [b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe", b"", b"9" * 10_000, b'{"n_layer": 1e999}'],
    ids=["nested", "nested dicts", "no text", "empty", "long number", "infinity"],
)
def test_invalid_config_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        load_pretrained(folder(tmp_path, content))


def test_huge_layers_in_folder_are_refused(tmp_path: Path) -> None:
    shape = {"n_layer": 10**12, "n_head": 2, "n_embd": 8, "n_positions": 4, "vocab_size": 16}
    with pytest.raises(InputError, match="lack"):
        load_pretrained(folder(tmp_path, json.dumps({"model_type": "gpt2", **shape}).encode()))


@pytest.mark.parametrize("width", [8 * 10**9, 8 * 10**17, 8 * 10**50])
def test_width_that_overflows_64_bits_is_refused(width: int) -> None:
    config = ModelConfig(n_layer=1, n_head=2, n_embd=width, block_size=4, vocab_size=16)
    weights = {"transformer.h.0.ln_1.weight": torch.ones(8)}
    assert check_shapes(config, weights) is not None


def test_deeply_nested_json_is_one_error_message(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="is not JSON"):
        read_json(tmp_path / "x.json")
