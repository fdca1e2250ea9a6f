"""Tests that recorded overrides, which come from a file, run no code and reveal no secrets."""

from pathlib import Path
from typing import Any

import pytest

from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.config.recorded import safe_overrides
from gpt2ckpt.config.replay import freeze, replay, still_meant

FROZEN: dict[str, Any] = freeze(compose_config("train", []).values)
HONEST = ["optimizer=muon", "optimizer.lr=1e-3", "experiment=quick", "~debug", "trainer.threads=2"]
HOSTILE = [
    "experiment=../../../../tmp/evil",  # a file with a `hydra:` part, whose callbacks are built
    "experiment=/tmp/evil",
    "experiment=[quick,../evil]",
    "+model@hydra.callbacks=gpt2_nano",
    "model@_global_=gpt2_nano",
    "+hydra/launcher=joblib",
    "hydra.searchpath=[file:///tmp/evil]",
    "hydra.run.dir=/tmp/evil",
    "+hydra.callbacks.evil._target_=os.mkdir",
    "name=../../evil",
    "name=${oc.env:HOME}",
    "logger.wandb_project=${oc.env:WANDB_API_KEY}",
    "data.train=${oc.decode:1}",
    "schema/train=train",
]


def test_safe_recorded_overrides_are_kept() -> None:
    assert safe_overrides(HONEST, FROZEN) == HONEST
    assert safe_overrides(["name=gpt2"], FROZEN) == ["name=gpt2"]


@pytest.mark.parametrize("argument", HOSTILE)
def test_unsafe_recorded_overrides_are_left_out(argument: str) -> None:
    assert safe_overrides([*HONEST, argument], FROZEN) == HONEST


def test_resume_composes_no_unsafe_override(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evil = tmp_path / "evil.yaml"
    evil.write_text("# @package _global_\nhydra:\n  callbacks:\n    evil: {_target_: os.mkdir}\n")
    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    composed: list[str] = []

    def compose(arguments: list[str]) -> dict[str, Any]:
        composed.extend(arguments)
        return compose_config("train", arguments).values

    up = "../" * 12
    recorded = [*HOSTILE, f"experiment={up}{str(evil).removesuffix('.yaml')}"]
    kept = still_meant(FROZEN, recorded, ["schedule=wsd", "optimizer.lr=1e-3"], compose)
    values, _ = replay(FROZEN, kept, ["schedule=wsd", "optimizer.lr=1e-3"], compose)
    assert not set(composed) & set(recorded)
    assert "a-very-secret-key" not in str(values)


def test_environment_variable_in_a_frozen_config_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gpt2ckpt.config.registry import build_typed

    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    logger = {**FROZEN["logger"], "wandb_project": "${oc.env:WANDB_API_KEY}"}
    built = build_typed("train", {**FROZEN, "logger": logger})
    assert built.logger.wandb_project == "${oc.env:WANDB_API_KEY}"
