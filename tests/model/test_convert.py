"""Weights from and to Hugging Face and nanoGPT: equal logits, and clear refusals."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from gpt2ckpt.config.schema import ModelConfig
from gpt2ckpt.errors import InputError
from gpt2ckpt.model.convert import check_shapes, load_pretrained
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.model.huggingface import is_huggingface, save_huggingface

SHAPES = [(2, 2, 32, 16, 101), (3, 5, 35, 13, 77), (4, 3, 60, 31, 50)]


def peer(shape: tuple[int, ...] = SHAPES[1], **options: Any) -> GPT2LMHeadModel:
    layers, heads, width, block, words = shape
    torch.manual_seed(11)
    config = GPT2Config(
        n_layer=layers,
        n_head=heads,
        n_embd=width,
        n_positions=block,
        vocab_size=words,
        bos_token_id=0,
        eos_token_id=0,
        **options,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)  # biases and norms too
    return model


def ours(path: Path) -> GPT2:
    config, state = load_pretrained(path)
    model = GPT2(config).eval()
    model.load_state_dict(state)
    return model


def tokens_for(block: int, words: int) -> Tensor:
    return torch.randint(words, (2, block), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def assert_same_logits(model: GPT2, other: GPT2LMHeadModel) -> None:
    tokens = tokens_for(model.config.block_size, model.config.vocab_size)
    expected = other(tokens).logits
    assert expected.abs().max() > 1
    torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_hugging_face_folder_gives_equal_logits(shape: tuple[int, ...], tmp_path: Path) -> None:
    other = peer(shape)
    other.save_pretrained(tmp_path)
    assert is_huggingface(tmp_path)
    assert_same_logits(ours(tmp_path), other)


def test_exact_gelu_is_kept(tmp_path: Path) -> None:
    other = peer(activation_function="gelu")
    other.save_pretrained(tmp_path / "in")
    model = ours(tmp_path / "in")
    assert_same_logits(model, other)
    save_huggingface(tmp_path / "out", model.state_dict(), model.config)
    assert_same_logits(model, GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval())


def test_weight_shards_bare_transformer_and_pickle_files_load(tmp_path: Path) -> None:
    other = peer()
    other.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert_same_logits(ours(tmp_path / "shards"), other)
    GPT2Model.save_pretrained(other.transformer, tmp_path / "trunk")  # names without a prefix
    assert_same_logits(ours(tmp_path / "trunk"), other)
    old = tmp_path / "old"
    other.config.save_pretrained(old)
    masks = {"transformer.h.0.attn.bias": torch.ones(1), "h.1.attn.masked_bias": torch.ones(1)}
    for zipped in (
        True,
        False,
    ):  # the published GPT-2 files have the format from before PyTorch 1.6
        torch.save(
            other.state_dict() | masks,
            old / "pytorch_model.bin",
            _use_new_zipfile_serialization=zipped,
        )
        assert_same_logits(ours(old), other)


@pytest.mark.parametrize("bias", [True, False])
def test_exported_model_gives_equal_logits_in_transformers(bias: bool, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = GPT2(ModelConfig(3, 3, 33, 9, 50, bias=bias)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
    save_huggingface(tmp_path, model.state_dict(), model.config)
    other, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_same_logits(model, other.eval())
    if bias:
        back = ours(tmp_path).state_dict()
        assert all(torch.equal(back[name], value) for name, value in model.state_dict().items())


def nanogpt_logits(state: dict[str, Tensor], tokens: Tensor, layers: int, heads: int) -> Tensor:
    """Return the logits by nanoGPT's formulas: separate heads, explicit mask, exact GELU."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state.get(f"{name}.bias"))

    x = state["transformer.wte.weight"][tokens]
    x = x + state["transformer.wpe.weight"][: tokens.shape[1]]
    mask = torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1)
    for i in range(layers):
        name = f"transformer.h.{i}"
        mixed = []
        q, k, v = linear(norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn").chunk(3, dim=-1)
        for a, b, c in zip(*(t.chunk(heads, dim=-1) for t in (q, k, v)), strict=True):
            scores = a @ b.transpose(1, 2) / math.sqrt(a.shape[-1]) + mask
            mixed.append(scores.softmax(-1) @ c)
        x = x + linear(torch.cat(mixed, dim=-1), f"{name}.attn.c_proj")
        inner = F.gelu(linear(norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc"))
        x = x + linear(inner, f"{name}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ state["lm_head.weight"].t()


def nanogpt_file(path: Path, bias: bool = False, prefix: str = "", **arguments: Any) -> Path:
    """Write a ckpt.pt as nanoGPT's train.py does."""
    torch.manual_seed(4)
    shape = {"n_layer": 2, "n_head": 3, "n_embd": 30, "block_size": 10, "vocab_size": 128}
    model = GPT2(ModelConfig(**shape, bias=bias))
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) / 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model.loss(torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.int64)).backward()
    optimizer.step()
    content = {
        "model": {prefix + name: value for name, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": shape | {"bias": bias, "dropout": 0.2} | arguments,
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.47),
        "config": {"out_dir": "out", "dataset": "shakespeare_char", "learning_rate": 1e-3},
    }
    torch.save(content, path)
    return path


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpt_checkpoint_gives_equal_logits(bias: bool, prefix: str, tmp_path: Path) -> None:
    path = nanogpt_file(tmp_path / "ckpt.pt", bias, prefix)
    model = ours(path)
    saved = torch.load(path, weights_only=True)["model"]
    state = {name.removeprefix("_orig_mod."): value for name, value in saved.items()}
    tokens = tokens_for(10, 128)
    with torch.no_grad():
        found = model(tokens)
        torch.testing.assert_close(found, nanogpt_logits(state, tokens, 2, 3), rtol=0, atol=1e-5)
        tanh = GPT2(replace(model.config, gelu="tanh")).eval()
        tanh.load_state_dict(model.state_dict())
        assert (
            tanh(tokens) - found
        ).abs().max() > 1e-4  # so that the test distinguishes the two forms


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["HOSTILE_TARGET"],)


@pytest.mark.parametrize("name", ["ckpt.pt", "folder/pytorch_model.bin"])
def test_pickled_code_is_not_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "pwned"
    monkeypatch.setenv("HOSTILE_TARGET", str(target))
    peer().config.save_pretrained(tmp_path / "folder")
    torch.save({"model": Hostile(), "model_args": {}}, tmp_path / name)
    source = tmp_path / name if name == "ckpt.pt" else tmp_path / "folder"
    with pytest.raises(InputError, match=r"torch\.load refuses it") as caught:
        load_pretrained(source)
    assert str(tmp_path / name) in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"activation_function": "relu"},
        {"tie_word_embeddings": False},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"layer_norm_epsilon": 1e-6},
        {"n_inner": 64},
        {"n_layer": None},
        {"n_head": 4},
        {"n_positions": 99},
    ],
)
def test_options_that_change_logits_are_refused_by_name(
    change: dict[str, Any], tmp_path: Path
) -> None:
    peer().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    key = next(iter(change)).replace("n_positions", "transformer.wpe.weight")
    with pytest.raises(InputError, match=key.replace("n_head", "model.n_head")) as caught:
        load_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_untied_output_layer_is_refused(tmp_path: Path) -> None:
    other = peer(tie_word_embeddings=False)
    other.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    with pytest.raises(InputError, match="untied output layer"):
        load_pretrained(tmp_path)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"not a Hugging Face folder"):
        load_pretrained(tmp_path)
    for content in (b"", b"hello", b"PK\x03\x04" + bytes(100)):
        (tmp_path / "ckpt.pt").write_bytes(content)
        with pytest.raises(InputError, match=r"ckpt\.pt"):
            load_pretrained(tmp_path / "ckpt.pt")
    whole = nanogpt_file(tmp_path / "ckpt.pt").read_bytes()
    (tmp_path / "ckpt.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"ckpt\.pt"):
        load_pretrained(tmp_path / "ckpt.pt")
    with pytest.raises(InputError, match="does not have: use_rmsnorm"):
        load_pretrained(nanogpt_file(tmp_path / "fork.pt", use_rmsnorm=True))


def test_folder_with_damaged_or_missing_shards_is_refused(tmp_path: Path) -> None:
    peer().save_pretrained(tmp_path, max_shard_size="40KB")
    index = tmp_path / "model.safetensors.index.json"
    first, second, *_ = sorted(tmp_path.glob("model-*.safetensors"))
    first.write_bytes(first.read_bytes()[:-10])
    with pytest.raises(InputError, match=first.name):
        load_pretrained(tmp_path)
    first.unlink()
    with pytest.raises(InputError, match=f"{first.name} is missing"):
        load_pretrained(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": f"../{second.name}"}}))
    with pytest.raises(InputError, match="lists no files of its folder"):
        load_pretrained(tmp_path)
    index.unlink()
    with pytest.raises(InputError, match="has no weights"):
        load_pretrained(tmp_path)


def test_check_shapes_names_difference_and_draws_no_random_numbers() -> None:
    config = ModelConfig(2, 2, 8, 4, 16)
    state = GPT2(config).state_dict()
    before = torch.get_rng_state()
    assert check_shapes(config, state) is None
    assert torch.equal(before, torch.get_rng_state())
    wide = check_shapes(ModelConfig(2, 2, 10, 4, 16), state)
    assert wide == (
        "the weights have transformer.wte.weight of shape (16, 8), but the model needs (16, 10)"
    )
    deeper = check_shapes(ModelConfig(3, 2, 8, 4, 16), state)
    assert deeper == "the weights lack transformer.h.2.ln_1.weight"
    shallower = check_shapes(ModelConfig(1, 2, 8, 4, 16), state)
    assert shallower is not None and "transformer.h.1." in shallower
