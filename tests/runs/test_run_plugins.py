"""The plugins of a run: which are recorded, and which a checkpoint needs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpt2ckpt.checkpoint.state import CheckpointMeta, PluginIdentity
from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.config.options import OPTIONS, PLUGINS, Option, Plugin, register
from gpt2ckpt.config.replay import freeze
from gpt2ckpt.errors import ConfigError, InputError
from gpt2ckpt.runs.command import with_plugins
from gpt2ckpt.runs.plugins import changed_plugins, plugins_in_use, require_plugins
from gpt2ckpt.training.agreement import _check_plugins, _sources

BUILT_IN = freeze(compose_config("train", []).values)
MINE: dict[str, Any] = {**BUILT_IN, "optimizer": {"kind": "mine", "lr": 0.1}}
SAVED = PluginIdentity(module="pack", options=["optimizer.mine"], version="1.0", source="a" * 32)


@dataclass
class Config:
    lr: float = 0.1


@pytest.fixture
def pack() -> Iterator[None]:
    """Register an option of the switched-on package `pack`."""
    register(Option("optimizer", "mine", Config, lambda config, model: None, "pack.inner"))
    PLUGINS["pack"] = Plugin("pack", version="1.0", source="a" * 32)
    yield
    del OPTIONS["optimizer"]["mine"]
    PLUGINS.clear()


def meta(*plugins: PluginIdentity) -> CheckpointMeta:
    state = CheckpointMeta.from_dict({})
    state.plugins = list(plugins)
    return state


def test_plugin_in_use_is_the_package_that_was_switched_on(pack: None) -> None:
    assert plugins_in_use(MINE) == [SAVED]
    assert plugins_in_use(BUILT_IN) is None
    assert with_plugins("a=1") == ["'plugins=[pack]'", "a=1"]


def test_commands_without_plugins_name_none() -> None:
    assert with_plugins("a=1") == ["a=1"]


def test_state_with_its_plugin_as_it_was_is_accepted(pack: None) -> None:
    require_plugins(Path("x.pt"), meta(SAVED))
    assert changed_plugins(MINE, meta(SAVED)) == []
    assert changed_plugins(BUILT_IN, meta()) == []


def test_missing_plugin_is_named_beside_those_that_are_on(pack: None) -> None:
    other = PluginIdentity(module="other", options=["schedule.theirs"])
    with pytest.raises(ConfigError, match=r"\(schedule theirs\): add plugins=\[pack,other\]$"):
        require_plugins(Path("x.pt"), meta(SAVED, other))


def test_hostile_record_is_named_and_not_imported() -> None:
    evil = PluginIdentity(module="os; x=$(y)\n", options=["no_group"])
    with pytest.raises(ConfigError, match=r"add plugins=\['os; x=\$\(y\)"):
        require_plugins(Path("x.pt"), meta(evil))


def test_other_version_and_other_source_are_changes(pack: None) -> None:
    PLUGINS["pack"] = Plugin("pack", version="1.1", source="b" * 32)
    [change] = changed_plugins(MINE, meta(SAVED))
    shown = "plugin pack: version 1.0, source aaaaaaaa → version 1.1, source bbbbbbbb"
    assert str(change) == shown


def test_rank_with_another_plugin_ends_with_a_message(pack: None) -> None:
    plan = {"frozen": MINE, "plugins": _sources(MINE)}
    _check_plugins(plan)
    PLUGINS["pack"] = Plugin("pack", version="1.0", source="b" * 32)
    with pytest.raises(InputError, match="this rank has a different plugin pack than the first"):
        _check_plugins(plan)
