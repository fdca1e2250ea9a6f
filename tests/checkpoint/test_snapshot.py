import threading

import pytest
import torch

from gpt2ckpt.checkpoint.snapshot import Staging
from gpt2ckpt.checkpoint.writer import Writer


def state_with_every_kind_of_value():
    weight = torch.randn(5, 3)
    return {
        "model": {"wte": weight, "lm_head": weight.detach(), "t": torch.randn(4, 6).t()},
        "optimizer": {"step": torch.tensor(3.0), "empty": torch.zeros(0)},
        "rng": [1, None, torch.arange(4, dtype=torch.uint8)],
        "name": "x",
    }


def test_a_snapshot_does_not_follow_the_training():
    state = state_with_every_kind_of_value()
    before = state["model"]["wte"].clone()
    copy = Staging().take(state)
    state["model"]["wte"].add_(1)
    assert torch.equal(copy["model"]["wte"], before)
    assert torch.equal(copy["model"]["t"], state["model"]["t"])
    assert copy["model"]["t"].is_contiguous()
    assert copy["rng"][:2] == [1, None] and copy["name"] == "x"


def test_tied_tensors_are_copied_once():
    copy = Staging().take(state_with_every_kind_of_value())
    assert copy["model"]["wte"] is copy["model"]["lm_head"]


def test_memory_is_made_once_and_used_again():
    staging, state = Staging(), state_with_every_kind_of_value()
    first = staging.take(state)["model"]["wte"]
    state["model"]["wte"].mul_(2)
    second = staging.take(state)["model"]["wte"]
    assert first.data_ptr() == second.data_ptr()
    assert torch.equal(second, state["model"]["wte"])


def test_a_tensor_that_changes_its_shape_gets_another_buffer():
    staging = Staging()
    staging.take({"a": torch.zeros(2)})
    assert torch.equal(staging.take({"a": torch.ones(3)})["a"], torch.ones(3))


def test_writer_runs_in_background_until_waited_for():
    writer, may_end, ended = Writer(), threading.Event(), []
    writer.start(lambda: (may_end.wait(10), ended.append(threading.current_thread()))[0])
    assert not ended
    may_end.set()
    writer.wait()
    assert ended[0] is not threading.current_thread()
    writer.close()


def test_an_error_in_the_background_is_raised_by_the_next_wait_and_only_there():
    writer = Writer()
    writer.start(lambda: int("no number"))
    with pytest.raises(ValueError, match="no number"):
        writer.wait()
    writer.wait()
    writer.close()
