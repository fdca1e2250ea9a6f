"""`export`: other programs load the same model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tools_helpers import damage, frozen, save

from gpt2ckpt.checkpoint.reading import load
from gpt2ckpt.config.registry import build_model_config
from gpt2ckpt.data.tokenizer import gpt2_encoding
from gpt2ckpt.model.gpt2 import GPT2

TEXT = " Läufe:\n\tfor i in range(10): print(f'{i}')   <|endoftext|>試験"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_transformers_loads_the_export_with_equal_outputs(
    checkpoints, trained_once, tmp_path, offline
) -> None:
    transformers = pytest.importorskip("transformers")
    run = trained_once / "outputs" / "a run, lr=3e-4"
    out = tmp_path / "new" / "hf"
    done = checkpoints("export", run, "--to", "hf", out)
    assert done.code == 0, done.err
    assert sorted(path.name for path in out.iterdir()) == [
        *("config.json", "merges.txt", "model.safetensors", "tokenizer_config.json", "vocab.json"),
    ]
    assert [path.name for path in out.parent.iterdir()] == ["hf"]

    state = load(run / "checkpoints" / "latest.pt")
    ours = GPT2(build_model_config(state["config"]["model"]))
    ours.load_state_dict(state["model"])
    theirs = transformers.GPT2LMHeadModel.from_pretrained(out)
    tokens = torch.randint(0, 50257, (2, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = ours.eval()(tokens), theirs.eval()(tokens).logits
    torch.testing.assert_close(found[:, -1], expected[:, -1], rtol=1e-5, atol=1e-5)

    ids = gpt2_encoding().encode(TEXT, allowed_special="all")
    for loader in (transformers.AutoTokenizer, transformers.GPT2TokenizerFast):
        tokenizer = loader.from_pretrained(out)
        assert tokenizer(TEXT)["input_ids"] == ids
        assert tokenizer.decode(ids) == TEXT
        assert tokenizer.model_max_length == 16
        assert tokenizer.eos_token_id == 50256


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """A checkpoint with a model of 64 tokens."""
    arguments = ("model.n_layer=1", "model.n_embd=8", "model.n_head=1", "model.vocab_size=64")
    config = frozen((*arguments, "model.block_size=8"))
    model = GPT2(build_model_config(config["model"])).state_dict()
    return save(tmp_path / "run", 3, {"config": config, "model": model})


@pytest.mark.parametrize("out", ["weights.safetensors", "folder"])
def test_exported_weights_contain_the_tied_weight_once(
    out, checkpoints, model_file, tmp_path
) -> None:
    assert checkpoints("export", model_file, "--to", "weights", tmp_path / out).code == 0
    written = tmp_path / out if "." in out else tmp_path / out / "model.safetensors"
    expected = {k: v for k, v in load(model_file)["model"].items() if k != "lm_head.weight"}
    found = load_file(written)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with safe_open(written, "pt") as file:
        metadata = file.metadata()
    assert metadata["step"] == "3"
    assert json.loads(metadata["config"])["n_embd"] == 8
    assert written.stat().st_mode & 0o777 == model_file.stat().st_mode & 0o777
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_export_of_another_vocabulary_has_no_tokenizer(checkpoints, model_file, tmp_path) -> None:
    done = checkpoints("export", model_file, "--to", "hf", tmp_path / "hf")
    assert done.code == 0
    assert "wrote no tokenizer: the vocabulary of 64 tokens" in done.out
    names = sorted(path.name for path in (tmp_path / "hf").iterdir())
    assert names == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("to", ["hf", "weights"])
def test_export_overwrites_nothing(to, checkpoints, model_file, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert checkpoints("export", model_file, "--to", to, out).code == 0  # an empty folder is free
    before = sorted(out.iterdir())
    for taken in (out, model_file):
        done = checkpoints("export", model_file, "--to", to, taken)
        assert done.code == 1
        assert done.err.endswith(
            f"{taken} exists already and is not overwritten: pass a new path\n"
        )
    assert sorted(out.iterdir()) == before


def test_damaged_checkpoint_is_not_exported(checkpoints, model_file, tmp_path) -> None:
    damage(model_file)
    done = checkpoints("export", model_file, "--to", "hf", tmp_path / "hf")
    assert done.code == 1
    assert "is damaged" in done.err
    assert not (tmp_path / "hf").exists()


def test_unwritable_output_exits_1_with_one_error_line(checkpoints, model_file, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    done = checkpoints("export", model_file, "--to", "hf", tmp_path / "file" / "hf")
    assert done.code == 1
    reason = f"{tmp_path}/file/hf cannot be written (Not a directory): pass a different path"
    assert done.err == f"error: {reason}\n"


def test_checkpoint_without_a_model_is_refused(checkpoints, run, tmp_path) -> None:
    done = checkpoints("export", run, "--to", "weights", tmp_path / "w")
    assert done.code == 1
    assert "cannot be exported: the weights lack" in done.err
