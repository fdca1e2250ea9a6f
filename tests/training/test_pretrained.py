"""The start report of fine-tuning names the file, the format and the number of tensors."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import start_of, train

from gpt2ckpt.config.schema import ModelConfig
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.model.huggingface import save_huggingface
from gpt2ckpt.training.validate_run import validate_run

SHAPE = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=64)


def summary(token_data: Any, directory: Path, weights: Path, *more: str) -> str:
    words = [word for word in token_data.overrides if not word.startswith("model.")]
    words += [f"model.init_from={weights}", *more]
    validated = validate_run(start_of(words, directory))
    assert validated.pretrained is not None
    return " ".join([*validated.pretrained.source.skipped, validated.pretrained.summary])


def parameters() -> int:
    return sum(parameter.numel() for parameter in GPT2(SHAPE).parameters())


def test_hugging_face_start_reports_cut_positions(token_data: Any, tmp_path: Path) -> None:
    save_huggingface(tmp_path / "hf", GPT2(SHAPE).state_dict(), SHAPE)
    whole = summary(token_data, tmp_path / "run", tmp_path / "hf")
    assert whole == (
        f"{tmp_path / 'hf'} (Hugging Face folder): 28 tensors, {parameters():,} parameters, "
        "no optimizer state"
    )
    cut = summary(token_data, tmp_path / "run", tmp_path / "hf", "model.block_size=16")
    assert f"28 tensors, {parameters() - 16 * 32:,} parameters, positions cut from 32 to 16," in cut


def test_nanogpt_start_reports_assumed_gelu(token_data: Any, tmp_path: Path) -> None:
    keys = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias")
    arguments = {key: asdict(SHAPE)[key] for key in keys}
    state = {"model": GPT2(SHAPE).state_dict(), "model_args": arguments, "iter_num": 7}
    torch.save(state, tmp_path / "ckpt.pt")
    found = summary(token_data, tmp_path / "run", tmp_path / "ckpt.pt")
    assert f"ckpt.pt (nanoGPT checkpoint): 28 tensors, {parameters():,} parameters" in found
    assert "model.gelu=exact assumed, since the file does not record it" in found
    given = summary(token_data, tmp_path / "run", tmp_path / "ckpt.pt", "model.gelu=tanh")
    assert "assumed" not in given


def test_start_from_run_reports_skipped_damaged_checkpoint(
    token_data: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "trained"
    train([*token_data.overrides, "trainer.max_steps=4", "checkpoint.save_every=2"], run)
    latest = run / "checkpoints" / "latest.pt"
    content = latest.read_bytes()
    latest.unlink()
    latest.write_bytes(content[:-100])
    found = summary(token_data, tmp_path / "run", run)
    assert found.startswith(f"skipped {latest}: ") and found.count("latest.pt") == 1
    assert "(gpt2ckpt checkpoint, step 4): 28 tensors, " in found
    with caplog.at_level(logging.INFO):
        words = [word for word in token_data.overrides if not word.startswith("model.")]
        train([*words, f"model.init_from={run}", "trainer.max_steps=2"], tmp_path / "tuned")
        text = caplog.text
        caplog.clear()
        train(["+resume=latest", "trainer.max_steps=3"], tmp_path / "tuned")
    assert "weights      skipped" in text and "(gpt2ckpt checkpoint, step 4): 28 tensors" in text
    assert "weights  " not in caplog.text, "a resume does not load them again"
