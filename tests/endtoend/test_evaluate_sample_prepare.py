"""The commands evaluate, sample and prepare."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Done, latest, run, side_by_side, succeed
from transformers import GPT2Config, GPT2LMHeadModel

PROSE = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 40
TINY = ["model.n_layer=1", "model.n_embd=16", "model.n_head=2", "model.block_size=16"]
QUICK = [
    *("trainer.max_steps=4", "trainer.batch_size=1", "trainer.eval_every=0", "logger=none"),
    *("trainer.sample_every=2", "trainer.sample_tokens=4", "trainer.threads=1"),
    "schedule.warmup_steps=0",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    (folder / "prose one.txt").write_text(PROSE)
    return folder


@pytest.fixture(scope="module")
def done(reference: Any, folder: Path, token_data: Any) -> dict[str, Done]:
    shards = ["data=tokens", "data.train=shards/train_*.bin", "data.val=shards/val_*.bin"]
    text = ["data=text", "data.train='prose *.txt'", "data.val_fraction=0.2"]
    weights = f"model.init_from={reference.directory}/checkpoints/best_model.pt"
    init = [weights, *reference.overrides[:3], *QUICK, "trainer.sample_every=0"]
    ckpt = f"ckpt={reference.directory}"
    prepared = side_by_side(
        folder,
        {
            "prepare": ("prepare", [*text, "out=shards", "shard_tokens=200"]),
            "evaluate": ("evaluate", [ckpt, "batch_size=7"]),
            "on_val": ("evaluate", [ckpt, "data=tokens", f"data.val={token_data.val}"]),
        },
    )
    overrides = [*shards, *TINY, *QUICK, "hydra.run.dir=on_shards"]
    return prepared | side_by_side(
        folder,
        {
            "train": ("train", overrides),
            "again": ("prepare", [*text, "out=shards"]),
            "init": ("train", [*init, "hydra.run.dir=from_weights"]),
        },
    )


def in_transformers(state: dict[str, Any], activation: str = "gelu_new") -> GPT2LMHeadModel:
    """Return the trained weights in a transformers model."""
    shape = {key: state["config"]["model"][key] for key in ("n_layer", "n_head", "n_embd")}
    shape |= {"vocab_size": 64, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**shape, activation_function=activation)).eval()
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    model.load_state_dict(
        {
            name: weight.t() if name.endswith(transposed) else weight
            for name, weight in state["model"].items()
        },
        strict=False,
    )
    return model


def loss_of_transformers(model: GPT2LMHeadModel, tokens: Path) -> tuple[float, int]:
    """Return the mean loss by transformers over all complete blocks of 32."""
    stream = torch.from_numpy(np.fromfile(tokens, dtype="<u2").astype(np.int64))
    starts = range(0, len(stream) - 32, 32)
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(
                model(stream[i : i + 32][None]).logits[0], stream[i + 1 : i + 33]
            )
            for i in starts
        ]
    return float(torch.stack(losses).double().mean()), 32 * len(losses)


def test_evaluate_equals_transformers_for_a_trained_checkpoint(
    reference: Any, done: dict[str, Done], token_data: Any
) -> None:
    answer = json.loads(succeed(done["evaluate"]).out.splitlines()[-1])
    model = in_transformers(latest(reference.directory))
    loss, tokens = loss_of_transformers(model, token_data.val)
    assert loss < math.log(64) - 1  # it is trained
    assert answer["val_loss"] == pytest.approx(loss, abs=1e-4)
    assert answer["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert answer["tokens"] == tokens
    assert (answer["step"], answer["precision"]) == (120, "float32")


def test_evaluate_and_sample_read_huggingface_and_nanogpt_weights(
    reference: Any, token_data: Any, tmp_path: Path
) -> None:
    """Read a Hugging Face folder by transformers and a nanoGPT checkpoint (exact GELU)."""
    state = latest(reference.directory)
    in_transformers(state).save_pretrained(tmp_path / "hf")
    shape = {key: state["config"]["model"][key] for key in ("n_layer", "n_head", "n_embd", "bias")}
    shape |= {"vocab_size": 64, "block_size": 32}
    torch.save({"model": state["model"], "model_args": shape}, tmp_path / "ckpt.pt")
    data = ["data=tokens", f"data.val={token_data.val}", "device=cpu"]
    done = side_by_side(
        tmp_path,
        {
            "hf": ("evaluate", ["ckpt=hf", *data]),
            "ckpt.pt": ("evaluate", ["ckpt=ckpt.pt", *data]),
            "sample": ("sample", ["ckpt=ckpt.pt", "prompt=1 2 3", "max_tokens=4", "device=cpu"]),
            "no data": ("evaluate", ["ckpt=hf"]),
        },
    )
    for name, activation in (("hf", "gelu_new"), ("ckpt.pt", "gelu")):
        loss, tokens = loss_of_transformers(in_transformers(state, activation), token_data.val)
        answer = json.loads(succeed(done[name]).out.splitlines()[-1])
        assert answer["val_loss"] == pytest.approx(loss, abs=1e-4)
        assert (answer["tokens"], answer["step"]) == (tokens, None)
    assert succeed(done["sample"]).out.startswith("1 2 3 ")
    assert done["no data"].code == 2
    assert "add data=text data.val=FILES" in done["no data"].message


def test_evaluate_needs_no_training_files(done: dict[str, Done]) -> None:
    own, given = (
        json.loads(succeed(done[key]).out.splitlines()[-1]) for key in ("evaluate", "on_val")
    )
    assert given["val_loss"] == pytest.approx(own["val_loss"], abs=1e-6)
    assert given["tokens"] == own["tokens"]


def test_training_reads_prepared_shards(folder: Path, done: dict[str, Done]) -> None:
    out = succeed(done["prepare"]).out
    shards = sorted(path.name for path in (folder / "shards").iterdir())
    assert shards[0] == "train_000000.bin" and shards[-1].startswith("val_")
    assert "python -m gpt2ckpt.train data=tokens data.train='shards/train_*.bin'" in out
    counts = {
        name: int(np.fromfile(folder / "shards" / name, dtype="<i4", count=3)[2]) for name in shards
    }
    train = sum(count for name, count in counts.items() if name.startswith("train"))
    assert f"{len(shards)} shards in shards: {train} training and " in out
    assert max(counts.values()) == 200
    succeed(done["train"])
    state = latest(folder / "on_shards")
    assert (state["step"], state["data"]["blocks_per_epoch"]) == (4, (train - 1) // 16)


def test_samples_appear_while_training(done: dict[str, Done]) -> None:
    assert done["train"].out.count("sample: The") == 2


def test_prepare_never_overwrites_shards(folder: Path, done: dict[str, Done]) -> None:
    assert done["again"].code == 1
    assert done["again"].message.startswith("shards already contains shards (train_000000.bin)")


def test_run_starts_from_the_weights_of_a_checkpoint(
    reference: Any, folder: Path, done: dict[str, Done]
) -> None:
    """The checkpoint sets the shape, and the first loss is that of the trained model."""
    out = succeed(done["init"]).out
    losses = [
        float(line.split("loss ")[1].split()[0]) for line in out.splitlines() if "| loss" in line
    ]
    best = latest(reference.directory)["best_val_loss"]
    assert abs(losses[0] - best) < 0.6 < math.log(64) - best
    state = latest(folder / "from_weights")
    assert state["config"]["model"]["n_embd"] == 32
    assert state["run"]["parent"] is None


def test_sample_writes_the_requested_number_of_texts(folder: Path, done: dict[str, Done]) -> None:
    succeed(done["train"])
    overrides = ["ckpt=on_shards", "prompt='The quick, brown'", "max_tokens=8"]
    done = run("sample", [*overrides, "num_samples=2", "seed=5"], folder)
    first, second = succeed(done).out.split("-" * 40 + "\n")
    assert first.startswith("The quick, brown") and len(first) > len("The quick, brown") + 3
    assert second.startswith("The quick, brown") and second != first


def test_model_with_another_vocabulary_is_sampled_as_token_ids(
    reference: Any, folder: Path
) -> None:
    """The command that a run prints works; a prompt must consist of token ids."""
    ckpt = [f"ckpt={reference.directory}", "max_tokens=4"]
    done = side_by_side(
        folder,
        {
            "plain": ("sample", ckpt),
            "text": ("sample", [*ckpt, "prompt=The"]),
            "ids": ("sample", [*ckpt, "prompt='5 32'"]),
        },
    )
    plain, text, ids = (succeed(done[name]) for name in ("plain", "text", "ids"))
    assert plain.out == text.out and plain.out.split()[0] == "0" and len(plain.out.split()) == 5
    assert ids.out.startswith("5 32 ") and len(ids.out.split()) == 6
    assert "instead of the prompt 'The'" in text.err
    assert plain.err == ids.err and plain.err.startswith(
        "the model's vocabulary has 64 tokens, which are not"
    )
