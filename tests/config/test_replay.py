"""Tests that a resume changes exactly those keys that its command line asks for."""

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.config.registry import build_typed
from gpt2ckpt.config.replay import (
    composable,
    difference,
    flatten,
    freeze,
    replay,
    still_meant,
    task_overrides,
    unflatten,
)
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.training.validate_run import check_settings

Values = dict[str, Any]


@functools.cache
def _composed(overrides: tuple[str, ...]) -> Values:
    return compose_config("train", [*overrides]).values


def compose(overrides: list[str]) -> Values:
    return copy.deepcopy(_composed(tuple(overrides)))


def resume(
    first: list[str], new: list[str], frozen: Values | None = None
) -> tuple[Values, list[str]]:
    """Return the config of a resume of a run started with `first`, and the printed changes."""
    frozen = frozen or freeze(compose(first))
    recorded = still_meant(frozen, first, new, compose)
    values, changes = replay(frozen, recorded, new, compose)
    return values, [str(change) for change in changes]


FIRST_STARTS = [
    [],
    ["optimizer.lr=1e-3", "trainer.max_steps=20"],
    ["experiment=quick", "model=gpt2_nano", "seed=7"],
    ["optimizer=muon", "optimizer.momentum=0.9", "schedule=wsd", "schedule.decay_steps=3"],
    ["checkpoint=light", "checkpoint.save_every=3", "logger=none", "++trainer.grad_accum=2"],
    ["data=text", "data.train='a b,c.txt'", "data.val='d=e.txt'", "trainer.sample_prompt='x, y'"],
    ["debug=steps", "trainer={batch_size:4,log_every:2}", "logger.wandb_tags=[a,b]"],
    ["optimizer.betas=[0.9,0.99]", "model.dropout=0.1", "name=${seed}"],
]


@pytest.mark.parametrize("command", FIRST_STARTS, ids=" ".join)
def test_command_of_the_first_start_changes_nothing(command: list[str]) -> None:
    frozen = freeze(compose(command))
    assert resume(command, command) == (frozen, [])
    assert resume(command, []) == (frozen, [])


def test_part_of_the_command_of_the_first_start_changes_nothing() -> None:
    command = ["optimizer=muon", "optimizer.momentum=0.9", "checkpoint=light", "seed=7"]
    frozen = freeze(compose(command))
    for argument in command:
        assert resume(command, [argument]) == (frozen, [])


def test_changed_key_is_printed_and_no_other_key_changes() -> None:
    values, changes = resume(["optimizer.lr=1e-3"], ["optimizer.lr=5e-4"])
    assert changes == ["optimizer.lr: 0.001 → 0.0005"]
    assert values == freeze(compose(["optimizer.lr=5e-4"]))


def test_several_changes_are_all_applied() -> None:
    new = ["trainer.max_steps=9", "schedule.warmup_steps=1", "logger=none", "trainer.threads=2"]
    values, changes = resume([], new)
    assert values == freeze(compose(new))
    assert sorted(changes) == [
        "logger.tensorboard: true → false",
        "schedule.warmup_steps: 40 → 1",
        "trainer.max_steps: null → 9",
        "trainer.threads: null → 2",
    ]


def test_key_can_be_set_back_to_its_default() -> None:
    values, changes = resume(["checkpoint.save_every=3"], ["checkpoint.save_every=250"])
    assert changes == ["checkpoint.save_every: 3 → 250"]
    assert values["checkpoint"]["save_every"] == 250


def test_experiment_given_on_resume_is_applied() -> None:
    values, changes = resume(["optimizer.lr=1e-3"], ["experiment=quick"])
    assert "name: gpt2 → quick" in changes
    assert "checkpoint.save_every: 250 → 50" in changes
    assert values == freeze(compose(["optimizer.lr=1e-3", "experiment=quick"]))


@pytest.mark.parametrize(
    "argument",
    [
        *("model.n_layer=5", "model.n_head=2", "model.n_embd=64", "model.block_size=64"),
        *("model.vocab_size=60000", "model.bias=false", "model=gpt2_small"),
    ],
)
def test_change_of_the_shape_is_refused(argument: str) -> None:
    with pytest.raises(ConfigError, match=r"a resume cannot change the shape of the model \(model"):
        resume([], [argument])


def test_change_of_the_optimizer_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"cannot change the optimizer \(optimizer.kind: adamw → "
    ):
        resume(["optimizer.lr=1e-3"], ["optimizer=muon"])
    assert resume(["optimizer.lr=1e-3"], ["optimizer=adamw"])[1] == []


def test_another_schedule_replaces_all_keys_of_the_group() -> None:
    values, changes = resume(
        ["schedule=wsd", "schedule.decay_steps=10", "schedule.warmup_steps=7"], ["schedule=cosine"]
    )
    assert values["schedule"] == freeze(compose([]))["schedule"]
    assert "schedule.kind: wsd → cosine" in changes
    assert "schedule.decay_steps: 10 → null" in changes


def test_keys_of_a_replaced_schedule_do_not_return() -> None:
    """Hydra would refuse schedule.decay_steps beside schedule=cosine in every later resume."""
    frozen, _ = resume(["schedule=wsd", "schedule.decay_steps=10"], ["schedule=cosine"])
    recorded = still_meant(
        frozen, ["schedule=wsd", "schedule=cosine"], ["schedule.min_lr_ratio=0.2"], compose
    )
    values, changes = replay(frozen, recorded, ["schedule.min_lr_ratio=0.2"], compose)
    assert [str(change) for change in changes] == ["schedule.min_lr_ratio: 0.1 → 0.2"]
    assert values["schedule"]["kind"] == "cosine"


def test_each_change_between_schedules_is_applied() -> None:
    frozen, recorded = freeze(compose([])), []
    for argument in ["schedule=wsd", "schedule=cosine", "schedule=wsd", "schedule=constant"]:
        recorded = still_meant(frozen, recorded, [argument], compose)
        frozen, changes = replay(frozen, recorded, [argument], compose)
        recorded = [old for old in recorded if old != argument] + [argument]
        assert frozen["schedule"]["kind"] == argument.partition("=")[2]
        assert changes


def test_option_that_differs_from_the_frozen_config_is_applied_whatever_is_recorded() -> None:
    frozen = freeze(compose([]))
    values, changes = replay(frozen, ["schedule=cosine", "schedule=wsd"], ["schedule=wsd"], compose)
    assert values["schedule"]["kind"] == "wsd"
    assert changes


def test_other_data_replaces_all_keys_of_the_group() -> None:
    values, changes = resume([], ["data=tokens", "data.train=a.bin", "data.val=b.bin"])
    assert values["data"] == {
        **{"kind": "tokens", "train": "a.bin", "val": "b.bin"},
        "dtype": "auto",
    }
    assert "data.kind: embedded → tokens" in changes


def test_removed_group_is_refused() -> None:
    values, _ = resume([], ["~schedule"])
    with pytest.raises(ConfigError, match="there is no schedule: pass schedule=NAME"):
        check_settings(build_typed("train", values))


def test_changed_conf_does_not_change_a_frozen_config() -> None:
    """A key that no override names keeps its frozen value, whatever today's default is."""
    frozen = freeze(compose([]))
    frozen["optimizer"]["lr"] = 0.123
    frozen["checkpoint"]["save_every"] = 17
    frozen["trainer"]["eval_every"] = 5
    first = copy.deepcopy(frozen)
    for new in (["optimizer=adamw"], ["checkpoint=safe", "model=gpt2_nano"], ["seed=1337"]):
        assert resume([], new, frozen) == (first, [])
    values, changes = resume([], ["optimizer.weight_decay=0.2"], frozen)
    assert changes == ["optimizer.weight_decay: 0.1 → 0.2"]
    assert values["optimizer"]["lr"] == 0.123
    values, changes = resume([], ["optimizer.lr=3e-3"], frozen)  # today's default, but named
    assert changes == ["optimizer.lr: 0.123 → 0.003"]


def test_key_that_is_new_in_the_schema_gets_its_default() -> None:
    frozen = freeze(compose([]))
    del frozen["trainer"]["grad_clip"]
    values, changes = resume([], ["seed=3"], frozen)
    assert changes == ["seed: 1337 → 3"]
    assert build_typed("train", values).trainer.grad_clip == 1.0


def test_overrides_of_hydra_and_resume_keys_are_not_recorded() -> None:
    given_ = ["optimizer.lr=1e-3", "+resume=latest", "resume=best", "+fork=true", "seed=2"]
    hydra = ["hydra.run.dir=x", "hydra/job_logging=none", "++hydra.sweep.dir=y"]
    assert task_overrides([*given_, *hydra]) == ["optimizer.lr=1e-3", "seed=2"]


def test_resume_key_changes_nothing() -> None:
    values, changes = resume([], task_overrides(["+resume=latest", "fork=true"]))
    assert not changes
    assert "resume" not in values


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=3), st.lists(st.none())
)
KEYS = st.text("abc_", min_size=1, max_size=3)
NESTED = st.recursive(
    LEAVES, lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3), max_leaves=12
)


@given(st.dictionaries(KEYS, NESTED))
def test_unflatten_inverts_flatten(values: Values) -> None:
    assert unflatten(flatten(values)) == values


@pytest.fixture
def my_conf(tmp_path: Path) -> Path:
    """Return a user's config folder with options of several groups."""
    texts = {
        "experiment/mine": "# @package _global_\ndefaults:\n  - override /optimizer: muon\n"
        "name: mine\ntrainer:\n  grad_accum: 3\n",
        "optimizer/mine": "defaults: [/schema_optimizer_adamw@_here_]\nlr: 0.007\n",
        "model/mine": "n_layer: 3\n",
        "schedule/mine": "defaults: [/schema_schedule_wsd]\nkind: wsd\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).with_suffix(".yaml").write_text(text)
    return tmp_path


@pytest.mark.parametrize("argument", ["trainer.max_steps=30", "~experiment", "checkpoint=light"])
@pytest.mark.parametrize(
    "recorded",
    [
        ["experiment=mine", "optimizer.momentum=0.8", "seed=3"],
        ["seed=3", "optimizer=mine", "optimizer.betas=[0.8,0.9]", "model=mine", "schedule=mine"],
        ["experiment=mine", "model=mine", "schedule.decay_steps=3", "schedule=mine"],
    ],
)
def test_resume_without_the_config_file_of_the_first_start(
    my_conf: Path, recorded: list[str], argument: str
) -> None:
    """The files of the recorded options no longer exist, so these options do not compose."""
    frozen = freeze(compose_config("train", recorded, my_conf).values)
    values, changes = resume(recorded, [argument], frozen)
    expected = []
    if argument != "~experiment":
        after = freeze(compose_config("train", [*recorded, argument], my_conf).values)
        expected = list(map(str, difference(flatten(frozen), flatten(after))))
    assert changes == expected
    assert all(values[group] == frozen[group] for group in ("model", "optimizer", "schedule"))
    assert resume(recorded, recorded, frozen) == (frozen, [])  # the first start's command


def test_key_of_a_kind_can_be_changed_without_the_config_file_that_chose_it(my_conf: Path) -> None:
    recorded = ["experiment=mine", "schedule=mine"]
    frozen = freeze(compose_config("train", recorded, my_conf).values)
    _, changes = resume(recorded, ["optimizer.momentum=0.8", "schedule.decay_steps=7"], frozen)
    assert changes == ["optimizer.momentum: 0.95 → 0.8", "schedule.decay_steps: 100 → 7"]
    for argument, hint in (
        ("optimizer.momentun=0.8", "Did you mean optimizer.momentum?"),
        ("experiment=mime", "there is no experiment=mime"),
        ("schedule=wsdd", "Did you mean schedule=wsd?"),
    ):
        with pytest.raises(ConfigError) as raised:
            resume(recorded, [argument], frozen)
        assert hint in str(raised.value)


def test_only_overrides_that_no_longer_compose_are_left_out() -> None:
    arguments = [
        "seed=3",
        "experiment=gone",
        "optimizer=muon",
        "optimizer.momentum=0.8",
        "no.key=1",
    ]
    assert composable(arguments, compose) == ["seed=3", "optimizer=muon", "optimizer.momentum=0.8"]
    assert composable(["experiment=gone"], compose) == []
