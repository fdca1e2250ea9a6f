"""What a sealed file of somebody else may lack: one sentence names it, before anything is built."""

from typing import Any

import pytest

from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.runs.resumable import FORMS, check_resumable

STATE: dict[str, Any] = {
    **{"step": 4, "epoch": 0, "tokens_seen": 64, "train_loss": 1.0, "val_loss": None},
    **{"best_val_loss": None, "best_step": None, "overrides": ["seed=1"]},
    **{"environment": {}, "model": {}, "optimizer": {}, "rng": {}, "scaler": {}, "versions": {}},
    "run": {"id": "1a2b3c4d", "parent": None},
    "data": {"digest": "0" * 32, "position": 8, "evaluated_step": 0},
    "config": {"name": "gpt2"},
}


def test_a_whole_state_passes() -> None:
    check_resumable(STATE, "latest.pt")


@pytest.mark.parametrize("key", FORMS)
@pytest.mark.parametrize("value", [..., -1, 1 << 70, True, "x", [1], b"x"], ids=str)
def test_an_entry_of_another_form_is_named(key: str, value: Any) -> None:
    state = {k: v for k, v in STATE.items() if k != key} if value is ... else {**STATE, key: value}
    if key.endswith("loss") and value in (-1, 1 << 70) and value is not True:
        return  # a loss may be any number
    with pytest.raises(CheckpointError, match=f"latest.pt cannot be resumed: {key} is"):
        check_resumable(state, "latest.pt")


@pytest.mark.parametrize("name", ["../../x", "a/b", "*", "", "a b", 7, None])
def test_a_run_id_that_would_be_a_path_is_refused(name: Any) -> None:
    with pytest.raises(CheckpointError, match=r"run\.id is"):
        check_resumable({**STATE, "run": {"id": name, "parent": None}}, "latest.pt")
