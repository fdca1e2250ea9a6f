"""Tests that a frozen config, which comes from a file, is data and builds no foreign classes."""

import copy
import dataclasses
import sys
from typing import Any, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2ckpt.config import schema
from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.config.registry import SINGLE, build_data_config, build_model_config, build_typed
from gpt2ckpt.config.replay import freeze, replay, still_meant
from gpt2ckpt.errors import ConfigError

FROZEN = freeze(compose_config("train", []).values)
STRINGS = [  # every place of a frozen config that holds a free text
    ("name",),
    ("trainer", "sample_prompt"),
    ("trainer", "device"),
    ("model", "init_from"),
    ("logger", "wandb_project"),
    ("logger", "wandb_entity"),
]
EVALUATED = ["${oc.env:HOME}", "${seed}", "${oc.env:NO_SUCH,x}", "a\\${seed}", "${now:%Y}", "${"]


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    values = copy.deepcopy(FROZEN)
    node = values
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return values


def read(config: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        config = getattr(config, key)
    return config


@pytest.mark.parametrize("text", EVALUATED)
@pytest.mark.parametrize("path", STRINGS, ids=".".join)
def test_interpolation_in_a_frozen_config_is_not_evaluated(
    path: tuple[str, ...], text: str
) -> None:
    assert read(build_typed("train", changed(path, text)), path) == text


def test_interpolation_in_a_list_a_number_or_data_is_not_evaluated() -> None:
    config = build_typed("train", changed(("logger", "wandb_tags"), ["${oc.env:HOME}"]))
    assert config.logger.wandb_tags == ["${oc.env:HOME}"]
    data = {"kind": "text", "train": "${oc.env:HOME}", "val": None, "val_fraction": 0.1}
    assert build_data_config(data).train == "${oc.env:HOME}"
    assert build_typed("train", changed(("data",), data)).data.train == "${oc.env:HOME}"
    with pytest.raises(ConfigError):
        build_model_config({**FROZEN["model"], "n_layer": "${oc.decode:2}"})
    with pytest.raises(ConfigError):
        build_typed("train", changed(("seed",), "${trainer.batch_size}"))


@settings(max_examples=40)
@given(st.text(st.sampled_from("${}\\a:.'\" ~"), max_size=9))
def test_any_string_in_a_frozen_config_is_kept(text: str) -> None:
    values = changed(("trainer", "sample_prompt"), text)
    assert build_typed("train", values).trainer.sample_prompt == text


def test_schema_has_no_tuples() -> None:
    """OmegaConf 2.4 composes a tuple as a tuple, which a checkpoint cannot hold; 2.3 as a list."""
    classes = [value for value in vars(schema).values() if dataclasses.is_dataclass(value)]
    hints = [hint for cls in classes for hint in get_type_hints(cls).values()]
    assert len(hints) > 50
    assert [hint for hint in hints if get_origin(hint) is tuple] == []


@pytest.mark.parametrize("group", SINGLE)
@pytest.mark.parametrize(
    "kind",
    ["os.system", "subprocess.Popen", "torch.optim.SGD", "__import__", "", None, 3, ["adamw"], {}],
    ids=repr,
)
def test_kind_that_is_not_registered_is_refused(group: str, kind: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{group}\.kind is .*; it must be one of "):
        build_typed("train", changed((group, "kind"), kind))


@pytest.mark.parametrize("group", SINGLE)
@pytest.mark.parametrize("content", ["os.system", 3, ["adamw"], True])
def test_group_that_is_not_a_mapping_is_refused(group: str, content: Any) -> None:
    with pytest.raises(ConfigError):
        build_typed("train", changed((group,), content))


@pytest.mark.parametrize(
    "path",
    [
        ("_target_",),
        ("optimizer", "_target_"),
        ("model", "_target_"),
        ("trainer", "_partial_"),
        ("data", "_recursive_"),
        ("hydra",),
    ],
    ids=".".join,
)
def test_hydras_keys_for_building_objects_are_refused(path: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"there is no config key"):
        build_typed("train", changed(path, "os.system"))


def test_values_are_checked_against_the_class_of_the_kind() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.momentum"):
        build_typed("train", changed(("optimizer", "momentum"), 0.9))
    muon = build_typed("train", changed(("optimizer", "kind"), "muon")).optimizer
    assert type(muon) is schema.MuonConfig


@pytest.mark.parametrize("argument", ["hydra.searchpath=[pkg://this]", "hydra/launcher=this"])
def test_recorded_overrides_of_hydra_are_left_out(argument: str) -> None:
    """A search path of the form pkg://MODULE would import the module."""
    composed = []

    def compose(overrides: list[str]) -> dict[str, Any]:
        composed.append(overrides)
        return compose_config("train", overrides).values

    recorded = still_meant(FROZEN, [argument, "seed=1337"], ["seed=3"], compose)
    values, _ = replay(FROZEN, recorded, ["seed=3"], compose)
    assert values == {**FROZEN, "seed": 3}
    assert not [arguments for arguments in composed if argument in arguments]
    assert "this" not in sys.modules
