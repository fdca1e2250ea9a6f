"""The typed state: which files it accepts, what it stores, and its keys in docs/format.md."""

import re
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import pytest
import torch

from gpt2ckpt.checkpoint.state import CheckpointMeta, CheckpointState
from gpt2ckpt.errors import CheckpointError

MANUAL = Path(__file__).parents[2] / "docs" / "format.md"
STATE: dict[str, Any] = {
    **{"format": "gpt2ckpt/1", "step": 4, "epoch": 0, "tokens_seen": 64, "train_loss": 1.0},
    **{"val_loss": None, "best_val_loss": None, "best_step": None, "reason": "regular"},
    "saved_at": "2025-11-06T12:00:00.000+00:00",
    "run": {"id": "1a2b3c4d", "name": "gpt2", "parent": None},
    **{"config": {"name": "gpt2"}, "overrides": ["seed=1"]},
    "data": {"digest": "0" * 32, "blocks_per_epoch": 9, "position": 8, "evaluated_step": 0},
    "schedule": {"total_steps": 10, "scale": 0.5},
    "environment": {"device": "cpu", "device_name": "x", "precision": "float32", "threads": 2},
    "versions": {"gpt2ckpt": "0.1.0", "torch": "2.0.0", "python": "3.11.0"},
    **{"scaler": {}, "model": {}, "optimizer": {}},
    "rng": {"python": [], "numpy": [], "torch": None, "cuda": None},
}


def require(state: dict[str, Any]) -> None:
    CheckpointState.from_dict(state).require_resumable("latest.pt")


def test_a_state_of_the_first_version_can_be_resumed() -> None:
    require(STATE)
    state = CheckpointState.from_dict(STATE)
    assert (state.environment.ranks, state.data.anomalies.skipped_blocks) == (1, 0)
    assert (state.data.unlogged.steps, state.data.evaluated_on, state.versions.code) == (
        0,
        None,
        None,
    )
    assert (state.run.wandb_id, state.rng.mps) == (None, None)


def test_unknown_keys_are_ignored() -> None:
    require({**STATE, "new": 1, "run": {**STATE["run"], "new": 1}})


COUNTS = (-1, 1 << 70, True, "x", [1], None, 0.5)
LOSSES = (True, "x", [1], {"a": 1}, b"x")
TEXTS = (7, True, None, [1], b"x")
MAPPINGS = (7, True, "x", [1], None)
REFUSED: dict[str, tuple[Any, ...]] = {
    # every entry of the first version: values of another type
    **dict.fromkeys(("step", "epoch", "tokens_seen", "schedule.total_steps"), COUNTS),
    **dict.fromkeys(("data.position", "data.blocks_per_epoch", "data.evaluated_step"), COUNTS),
    **{"environment.threads": COUNTS, "best_step": COUNTS[:-2]},
    **dict.fromkeys(("train_loss", "val_loss", "best_val_loss"), LOSSES),
    "schedule.scale": (*LOSSES, None),
    **dict.fromkeys(("format", "reason", "saved_at", "config.name", "data.digest"), TEXTS),
    **dict.fromkeys(("environment.device", "environment.device_name"), TEXTS),
    **dict.fromkeys(("environment.precision", "versions.gpt2ckpt", "versions.torch"), TEXTS),
    **dict.fromkeys(("versions.python", "run.name"), TEXTS),
    "run.id": (*TEXTS, "../../x", "a/b", "*", "", "a b"),  # becomes part of file names
    **dict.fromkeys(("run", "config", "data", "schedule", "environment", "versions"), MAPPINGS),
    **dict.fromkeys(("scaler", "model", "optimizer", "rng"), MAPPINGS),
    **{"overrides": ("x", [1], None, {}), "rng.python": ("x", None), "rng.numpy": ("x", None)},
}
LATER: dict[str, tuple[Any, ...]] = {
    # entries that a file may lack
    **{"run.parent": ("x", {"id": 7}), "run.wandb_id": TEXTS[:2], "data.files": ("x", [1])},
    **{"data.unverified_since": COUNTS[:3], "data.evaluated_on": TEXTS[:2]},
    **{"data.unlogged": ("x", {"steps": -1}), "data.bad_numbers": ("x", {"rollbacks": -1})},
    **{"environment.ranks": COUNTS, "environment.variables": ("x", {"MKL_CBWR": 1})},
    **{"versions.code": TEXTS[:2], "versions.dirty": (1, "x")},
}


def changed(name: str, value: Any) -> dict[str, Any]:
    """STATE with another value of a dotted key; without the key for `...`."""
    outer, _, inner = name.rpartition(".")
    part = {**STATE[outer]} if outer else {**STATE}
    part[inner] = value
    if value is ...:
        del part[inner]
    return {**STATE, outer: part} if outer else part


@pytest.mark.parametrize("name", [*REFUSED, *LATER])
def test_an_unusable_entry_is_named(name: str) -> None:
    missing = (...,) if name in REFUSED else ()
    for value in (*missing, *{**REFUSED, **LATER}[name]):
        with pytest.raises(CheckpointError) as caught:
            require(changed(name, value))
        error = str(caught.value)
        assert error.startswith(f"latest.pt cannot be resumed: {name}"), value
        assert error.endswith(" is missing or unusable in it")


def test_every_entry_of_the_first_version_is_tested() -> None:
    inner = [
        f"{key}.{name}" for key, value in STATE.items() if type(value) is dict for name in value
    ]
    untyped = {"rng.torch", "rng.cuda"}  # tensors: restoring them fails, or works
    assert {*STATE, *inner} - untyped == {*REFUSED, "run.parent"}


def test_a_head_with_unusable_entries_is_read_with_neutral_values() -> None:
    meta = CheckpointMeta.from_dict({"step": 7, "epoch": "two", "val_loss": [], "run": {"id": 7}})
    assert (meta.step, meta.epoch, meta.val_loss, meta.run.id) == (7, 0, None, "")
    assert meta.has("step") and meta.config == {} and meta.overrides == []
    for name in ("epoch", "val_loss", "run.id", "run.name", "data", "data.position"):
        assert not meta.has(name)


# ---------------------------------------------------------------- docs/format.md


def text_of(hint: Any) -> str:
    """A type as the page writes it."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, dict):
        kind = "" if inner[-1] is Any else f" of {text_of(inner[-1])}"
        return f"{origin.__name__}{kind}"
    if inner:
        return " or ".join(text_of(kind) for kind in inner)
    names = {NoneType: "null", torch.Tensor: "tensor"}
    return "dict" if is_dataclass(hint) else names.get(hint) or str(hint.__name__)


def described(cls: Any, prefix: str = "") -> dict[str, str]:
    """The type of each stored field by its dotted name, nested ones after the field they are in."""
    found = {}
    hints = typing.get_type_hints(cls, localns={"Tensor": torch.Tensor})
    for part in fields(cls):
        if not part.metadata.get("stored", True):
            continue
        name, text = prefix + part.metadata.get("key", part.name), text_of(hints[part.name])
        if part.metadata.get("omitted"):
            text = text.replace(" or null", ", or absent")
        found[name] = text
        members = [hints[part.name], *typing.get_args(hints[part.name])]
        items = [item for member in members for item in typing.get_args(member)]
        for kind in dict.fromkeys([*members, *items]):
            found |= described(kind, f"{name}.") if is_dataclass(kind) else {}
    return found


def test_the_manual_lists_every_field_with_its_type() -> None:
    rows = MANUAL.read_text().partition("## Keys")[2].partition("## Versions")[0]
    listed = re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|", rows, re.MULTILINE)
    assert listed == list(described(CheckpointState).items())
    assert len(listed) == rows.count("\n| `"), "a row of another form"


def test_the_manual_marks_the_fields_that_earlier_versions_lack() -> None:
    rows = MANUAL.read_text().partition("## Keys")[2].partition("## Versions")[0]
    later = set(re.findall(r"^\| `([\w.]+)` \| [^|]+ \| \*later\*", rows, re.MULTILINE))
    inner = ("data.unlogged.", "data.bad_numbers.", "run.parent.")
    optional = {name for name in described(CheckpointState) if not name.startswith(inner)}
    required = set(CheckpointState.from_dict({}).unusable) | {"run.parent"}
    required |= {
        n
        for key in ("run", "data", "schedule", "environment", "versions", "rng")
        for n in CheckpointState.from_dict({key: {}}).unusable
    }
    assert later == optional - required
