"""Files of every version of the format stay readable, and docs/format.md lists their keys."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_helpers import records_of, small_state, to_bytes

from gpt2ckpt.checkpoint import format, reading
from gpt2ckpt.checkpoint.state import CheckpointState, DataIdentity, RunIdentity, ScheduleState
from gpt2ckpt.config.schema import AdamWConfig, ModelConfig, MuonConfig
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.optim.optimizers import build_optimizer
from gpt2ckpt.training.callbacks import Callbacks
from gpt2ckpt.training.hardware import choose_hardware
from gpt2ckpt.training.state import Counters, Provenance, TrainingState

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.pt")), ids=lambda path: path.stem)
def test_files_of_every_version_stay_readable(path: Path) -> None:
    reading.check(path)
    state, wanted = reading.load(path), small_state(7)
    assert state["step"] == 7
    assert torch.equal(state["model"]["wte"], wanted["model"]["wte"])
    assert state["model"]["head"] is state["model"]["wte"]
    assert torch.load(path, weights_only=True)["loss"] == wanted["loss"]


def test_fixture_of_present_version_has_same_bytes() -> None:
    written = (FIXTURES / f"{format.FORMAT.replace('/', '_')}.pt").read_bytes()
    assert written == to_bytes(small_state(7)), "other bytes for the same state: a new version?"


def captured(optimizer: AdamWConfig | MuonConfig) -> dict[str, Any]:
    """What a training run saves, after one step."""
    model = GPT2(ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=16))
    parts = TrainingState(
        model,
        build_optimizer(optimizer, model),
        torch.amp.GradScaler("cpu", enabled=False),
        Counters(),
    )
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    model.loss(tokens, tokens).backward()
    parts.optimizer.step()
    provenance = Provenance(
        run=RunIdentity("0123abcd", "gpt2"),
        config={"name": "gpt2"},
        overrides=[],
        data=DataIdentity(digest="", blocks_per_epoch=1),
        environment=choose_hardware("cpu", "float32", 1).recorded(ranks=1),
    )
    return parts.capture(provenance, 0, ScheduleState(1, 1.0), "regular", Callbacks()).to_dict()


@pytest.mark.parametrize("optimizer", [AdamWConfig(), MuonConfig()], ids=["adamw", "muon"])
def test_a_training_state_opens_with_plain_torch_load(
    tmp_path: Path, optimizer: AdamWConfig | MuonConfig
) -> None:
    state, path = captured(optimizer), tmp_path / "latest.pt"
    path.write_bytes(to_bytes(state))
    ours = reading.load(path)
    for mmap in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mmap)
        assert set(loaded) == set(ours) == set(state)
        for name, tensor in state["model"].items():
            assert torch.equal(loaded["model"][name], tensor)
        for entry in ("config", "versions", "run", "schedule", "data", "saved_at"):
            assert loaded[entry] == ours[entry] == state[entry]


def test_a_captured_state_is_read_back_as_it_was() -> None:
    data = to_bytes(captured(AdamWConfig()))
    state = CheckpointState.from_dict(format.load(BytesIO(data)))
    state.require_resumable("latest.pt")
    before, after = records_of(data), records_of(to_bytes(state.to_dict()))
    assert [name for name in before if before[name] != after[name] and name != "data.pkl"] == []
