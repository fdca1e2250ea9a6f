"""Plugins: which modules are switched on, and what a failed import or registration reports."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2ckpt.config import plugins
from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.config.help import page
from gpt2ckpt.config.options import OPTIONS, PLUGINS
from gpt2ckpt.config.registry import build_typed
from gpt2ckpt.config.replay import Effect, classify, flatten, freeze
from gpt2ckpt.config.strings import quote_strings
from gpt2ckpt.errors import ConfigError

LION = """
from dataclasses import dataclass, field

from gpt2ckpt import extend


@dataclass
class LionConfig:
    lr: float = 1e-4  # peak learning rate of Lion
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    tag: str = extend.setting("none", effect="harmless", help="a label")
    width: int = extend.setting(3, effect="shape")

    def __post_init__(self):
        if self.lr <= 0:
            raise ValueError("lr must be positive")


@extend.optimizer("lion", LionConfig)
def build(config, model):
    raise KeyError("no such thing")
"""
Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restored_plugins: None) -> Write:
    """Return a function that writes a module."""
    monkeypatch.syspath_prepend(tmp_path)

    def module(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        importlib.invalidate_caches()

    return module


@pytest.fixture
def lion(write: Write) -> None:
    write("lion_plugin", LION)
    plugins.load(["lion_plugin"])


def test_option_of_a_plugin_composes_without_yaml(lion: None) -> None:
    words = ["plugins=[lion_plugin]", "optimizer=lion", "optimizer.lr=3e-4"]
    values = compose_config("train", words).values
    assert values["optimizer"] == {
        "kind": "lion",
        "lr": 3e-4,
        "betas": [0.9, 0.99],
        "tag": "none",
        "width": 3,
    }
    config = build_typed("train", freeze(values)).optimizer
    assert (type(config).__name__, config.kind, config.lr) == ("LionConfig", "lion", 3e-4)
    assert "plugins" not in freeze(values)


def test_keys_of_a_plugin_are_typed_quoted_suggested_and_shown(lion: None) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr must be a number"):
        compose_config("train", ["optimizer=lion", "optimizer.lr=fast"])
    with pytest.raises(ConfigError, match=r"Did you mean optimizer\.width\?"):
        compose_config("train", ["optimizer=lion", "optimizer.widht=3"])
    with pytest.raises(ConfigError, match=r"Did you mean optimizer=lion\?"):
        compose_config("train", ["optimizer=lyon"])
    assert quote_strings(["optimizer.tag=a,b"], "train", multirun=False) == ["optimizer.tag='a,b'"]
    text = page("train", compose_config("train", ["optimizer=lion"]), None)
    assert "optimizer: adamw, lion, muon (now lion)" in text
    assert "optimizer.lr=0.0001           peak learning rate of Lion" in text
    assert "optimizer.tag=none            a label" in text


def test_effect_of_a_key_is_that_of_its_setting(lion: None) -> None:
    flat = flatten(freeze(compose_config("train", ["optimizer=lion"]).values))
    effects = {leaf: classify(f"optimizer.{leaf}", flat) for leaf in ("lr", "tag", "width", "kind")}
    assert effects == {
        "lr": Effect.TRAJECTORY,
        "tag": Effect.HARMLESS,
        "width": Effect.SHAPE,
        "kind": Effect.SHAPE,
    }


def test_config_class_that_refuses_its_values_is_a_config_error(lion: None) -> None:
    values = compose_config("train", ["optimizer=lion", "optimizer.lr=0"]).values
    with pytest.raises(ConfigError, match=r"'lion' \(plugin lion_plugin\): lr must be positive"):
        build_typed("train", values)


REGISTER = "from lion_plugin import LionConfig\nfrom gpt2ckpt import extend\n"
WRONG = {
    "import nothing_like_this\n": r"plugin wrong cannot be imported, in .*wrong\.py:1: "
    "ModuleNotFoundError: No module named 'nothing_like_this'",
    "x = 1\nraise ValueError('boom')\n": r"in .*wrong\.py:2: ValueError: boom",
    "def (:\n": r"plugin wrong cannot be imported.*: SyntaxError: invalid syntax",
    "raise SystemExit(3)\n": "SystemExit: 3",
    REGISTER + "@extend.optimizer('lion', LionConfig)\ndef b(c, m): ...\n": "optimizer=lion is "
    "registered twice, by lion_plugin and by wrong",
    REGISTER + "@extend.optimizer('adamw', LionConfig)\ndef b(c, m): ...\n": "optimizer=adamw is "
    "registered twice, by gpt2ckpt.builtin and by wrong",
    REGISTER + "\n".join(2 * ["@extend.schedule('mine', LionConfig)\ndef b(c, n): ...\n"]): "twice",
    REGISTER + "@extend.optimizer('a b', LionConfig)\ndef b(c, m): ...\n": "cannot be chosen",
    REGISTER + "@extend.model('rope', LionConfig)\ndef b(c): ...\n": "needs the fields block_size",
    REGISTER + "@extend.optimizer('x', dict)\ndef b(c, m): ...\n": "must be a dataclass",
    "from dataclasses import dataclass\nfrom gpt2ckpt import extend\n@dataclass\nclass C:\n"
    "    kind: str = 'x'\n@extend.optimizer('x', C)\ndef b(c, m): ...\n": "the field kind",
    "from dataclasses import dataclass\nfrom gpt2ckpt import extend\n@dataclass(frozen=True)\n"
    "class C:\n    lr: float = 1.0\n@extend.optimizer('x', C)\ndef b(c, m): ...\n": "frozen",
    "from dataclasses import dataclass\nfrom gpt2ckpt import extend\n@dataclass\nclass C:\n"
    "    lr: set = None\n@extend.optimizer('x', C)\ndef b(c, m): ...\n": "cannot be a schema",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items())
def test_plugin_that_cannot_be_used_is_one_message(
    write: Write, lion: None, text: str, message: str
) -> None:
    write("wrong", text)
    options = {group: dict(names) for group, names in OPTIONS.items()}
    with pytest.raises(ConfigError, match=message) as caught:
        plugins.load(["wrong"])
    assert "\n" not in str(caught.value)
    assert "wrong" not in PLUGINS and options == OPTIONS  # nothing of it stays


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_plugin", r"there is no module no_such_plugin .*current directory.*PYTHONPATH"),
        ("no_such_package.inner", "there is no module"),
        ("lion_plugin.py", r"plugins=\[lion_plugin\]"),
        ("../lion_plugin", "is not the name of a module"),
    ],
)
def test_missing_plugin_is_named_with_where_it_is_searched(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plugins.load([name])


def test_command_line_comes_before_the_users_files(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "defaults: [train, {override /optimizer: [x]}, _self_]\nplugins: [from_primary]\n"
    )
    for group, text in {
        "experiment": "# @package _global_\nplugins: [from_experiment]\n",
        "optimizer": "plugins: [a key of the group]\n",
    }.items():
        (tmp_path / group).mkdir()
        (tmp_path / group / "x.yaml").write_text(text)

    def found(*words: str) -> list[str]:
        return plugins.switched_on(words, tmp_path, "mine")

    assert found() == ["from_primary"]
    assert found("experiment=x") == ["from_primary", "from_experiment"]
    assert found("plugins=[typed,too]", "experiment=x") == ["typed", "too"]
    assert found("plugins=[]") == []
    assert plugins.switched_on(["seed=1", "plugins=[a]", "plugins=[b]"], None, "train") == ["b"]


def test_entry_point_switches_a_plugin_on_and_has_its_version(write: Write, tmp_path: Path) -> None:
    write("packed", LION)
    record = tmp_path / "lion_pack-1.2.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: lion-pack\nVersion: 1.2\n")
    (record / "entry_points.txt").write_text("[gpt2ckpt.plugins]\nlion = packed\n")
    plugins._installed.cache_clear()
    names = plugins.switched_on([], None, "train")
    assert names == ["packed"]
    plugins.load(names)
    assert PLUGINS["packed"].version == "1.2" and PLUGINS["packed"].is_installed


def test_composing_imports_no_plugin(write: Write, tmp_path: Path) -> None:
    write("trace", f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    with pytest.raises(ConfigError, match=r"plugin trace is named where .*plugins=\[trace\]"):
        compose_config("train", ["plugins=[trace]"])
    assert not (tmp_path / "imported").exists() and "trace" not in sys.modules


def test_users_yaml_of_the_name_of_an_option_comes_first(lion: None, tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "lion.yaml").write_text(
        "defaults: [/schema_optimizer_lion@_here_, _self_]\nlr: 0.007\n"
    )
    values = compose_config("train", ["optimizer=lion", "optimizer.width=4"], tmp_path).values
    assert (values["optimizer"]["lr"], values["optimizer"]["width"]) == (0.007, 4)
    assert compose_config("train", ["optimizer=lion"]).values["optimizer"]["lr"] == 1e-4
