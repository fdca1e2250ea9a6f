"""`diff`: config keys by effect, and tensors compared bitwise."""

import pytest
import torch
from tools_helpers import damage, frozen, save

from gpt2ckpt.config.options import Effect
from gpt2ckpt.config.replay import classify, flatten


def test_diff_groups_config_keys_by_effect(checkpoints, tmp_path) -> None:
    first = save(tmp_path / "a", 10)
    arguments = ("optimizer.lr=0.5", "model.n_layer=7", "logger=none", "checkpoint.save_every=3")
    second = save(tmp_path / "b", 12, {"config": frozen(arguments)})
    done = checkpoints("diff", first, second)
    assert done.code == 0
    assert "step: 10 → 12\n" in done.out
    assert "val_loss: 4.4 → 4.38\n" in done.out
    shape, trajectory, harmless = (
        done.out.index(f"config, {effect}:\n") for effect in reversed(Effect)
    )
    lines = {
        "  model.n_layer: 4 → 7\n": (shape, trajectory),
        "  optimizer.lr: 0.003 → 0.5\n": (trajectory, harmless),
        "  logger.tensorboard: true → false\n": (harmless, len(done.out)),
        "  checkpoint.save_every: 250 → 3\n": (harmless, len(done.out)),
    }
    for line, (start, end) in lines.items():
        assert line in done.out[start:end]


def test_diff_compares_code_and_machine(checkpoints, tmp_path) -> None:
    first = {"versions": {"torch": "2.9", "code": "3f2a"}, "environment": {"variables": {}}}
    second = {
        "versions": {"torch": "2.9", "code": "9c1b", "dirty": True},
        "environment": {"cpu_capability": "AVX2", "variables": {"MKL_CBWR": "COMPATIBLE"}},
    }
    paths = save(tmp_path / "a", 1, first), save(tmp_path / "b", 1, second)
    lines = checkpoints("diff", *paths).out.splitlines()
    assert "versions.code: 3f2a → 9c1b" in lines
    assert "versions.dirty: null → true" in lines
    assert "environment.cpu_capability: null → AVX2" in lines
    assert "environment.variables.MKL_CBWR: null → COMPATIBLE" in lines
    assert not any("torch" in line for line in lines)


def test_diff_of_a_file_with_itself_is_empty(checkpoints, run) -> None:
    folder = run / "checkpoints"
    done = checkpoints(
        "diff", folder / "best_model.pt", folder / "best_model_backup.pt", "--tensors"
    )
    assert done.code == 0
    assert done.out.splitlines()[2:] == [
        "step, losses and run are the same",
        "the configs are the same",
        "3 tensors: all the same",
    ]


def test_diff_reports_every_differing_tensor(checkpoints, tmp_path) -> None:
    weight = torch.zeros(64, 64)
    first = {"model": {"a": weight, "b": torch.zeros(2), "c": torch.zeros(2), "gone": weight}}
    changed = weight.clone()
    changed[63, 63] = -0.0  # equal as a number, but not bitwise
    second = {
        "model": {"a": changed, "b": torch.zeros(2, 1), "c": torch.zeros(2).double(), "new": weight}
    }
    paths = save(tmp_path / "a", 1, first), save(tmp_path / "b", 1, second)
    done = checkpoints("diff", *paths, "--tensors")
    assert done.code == 1
    assert done.out.splitlines()[-6:] == [
        "model.gone: only in A",
        "model.new: only in B",
        "model.a: its values differ",
        "model.b: float32 [2] → float32 [2, 1]",
        "model.c: float32 [2] → float64 [2]",
        "5 of 5 tensors differ",
    ]
    assert checkpoints("diff", *paths).code == 0


def test_diff_verifies_both_files(checkpoints, run) -> None:
    folder = run / "checkpoints"
    damage(folder / "latest.pt")
    for arguments in (("latest.pt", "epoch_00000.pt"), ("epoch_00000.pt", "latest.pt")):
        done = checkpoints("diff", *(folder / argument for argument in arguments))
        assert (done.code, done.out) == (1, "")
        assert "latest.pt cannot be used: the tensor model.wte is damaged" in done.err


@pytest.mark.parametrize(
    ("key", "effect"),
    [
        ("model.n_embd", Effect.SHAPE),
        ("model.dropout", Effect.TRAJECTORY),
        ("optimizer.kind", Effect.SHAPE),
        ("optimizer.lr", Effect.TRAJECTORY),
        ("schedule.warmup_steps", Effect.TRAJECTORY),
        ("data.train", Effect.TRAJECTORY),
        ("seed", Effect.TRAJECTORY),
        ("trainer.batch_size", Effect.TRAJECTORY),
        ("trainer.threads", Effect.TRAJECTORY),
        ("trainer.eval_every", Effect.HARMLESS),
        ("trainer.log_every", Effect.HARMLESS),
        ("trainer.sample_prompt", Effect.HARMLESS),
        ("checkpoint.keep_rolling", Effect.HARMLESS),
        ("logger.wandb", Effect.HARMLESS),
        ("name", Effect.HARMLESS),
        ("trainer.of_a_later_version", Effect.TRAJECTORY),
    ],
)
def test_effect_of_each_key(key: str, effect: Effect) -> None:
    assert classify(key, flatten(frozen())) is effect


@pytest.mark.parametrize(
    ("arguments", "effect"),
    [
        ((), Effect.TRAJECTORY),
        (("schedule=wsd",), Effect.TRAJECTORY),
        (("schedule=constant",), Effect.HARMLESS),
        (("schedule.steps=100",), Effect.HARMLESS),
    ],
)
@pytest.mark.parametrize("key", ["trainer.max_steps", "trainer.max_epochs"])
def test_longer_run_matters_only_to_a_schedule_that_spans_it(key, arguments, effect) -> None:
    assert classify(key, flatten(frozen(arguments))) is effect


def test_length_is_harmless_only_in_both_configs(checkpoints, tmp_path) -> None:
    first = save(tmp_path / "a", 1, {"config": frozen(("schedule.steps=9", "trainer.max_steps=9"))})
    second = save(tmp_path / "b", 1, {"config": frozen(("trainer.max_steps=10",))})
    out = checkpoints("diff", first, second).out
    assert "  trainer.max_steps: 9 → 10\n" in out.partition(f"config, {Effect.TRAJECTORY}:")[2]
