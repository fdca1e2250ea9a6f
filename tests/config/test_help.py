"""Tests of --help: every group, option and key, with the meaning of each key."""

from pathlib import Path

import pytest

from gpt2ckpt.config.compose import compose_config, config_groups
from gpt2ckpt.config.help import meanings, page
from gpt2ckpt.config.registry import ROOTS, all_keys


@pytest.mark.parametrize("root", ROOTS)
def test_every_key_has_a_comment_in_conf(root: str) -> None:
    for key in all_keys(root):
        group, _, leaf = key.rpartition(".")
        if leaf != "kind" and key not in config_groups():
            assert meanings(group, "" if group else root).get(leaf), key


@pytest.mark.parametrize(("root", "arguments"), [(root, []) for root in ROOTS])
def test_help_shows_every_key_with_its_value(root: str, arguments: list[str]) -> None:
    text = page(root, compose_config(root, arguments), None)
    assert all(len(line) <= 100 or "-sc install" in line for line in text.splitlines()), text
    shown = {line.split("=")[0].strip() for line in text.splitlines() if "=" in line}
    offered = {key for key in all_keys(root) if "." not in key}
    assert offered <= shown | config_groups()


def test_help_shows_the_chosen_options_and_values(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("n_layer: 7\n")
    arguments = ["optimizer=muon", "model=mine", "trainer.batch_size=3"]
    text = page("train", compose_config("train", arguments, tmp_path), tmp_path)
    assert "gpt2_xl, mine (now mine)" in " ".join(text.split())
    assert "optimizer: adamw, muon (now muon)" in text
    for key in ("model.n_layer=7 ", "trainer.batch_size=3 ", "optimizer.ns_steps=5 "):
        assert key in text
    assert "model.n_layer=7               transformer layers" in text
