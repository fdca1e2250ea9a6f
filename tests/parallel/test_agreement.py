"""A rank that reads different files stops all ranks before anything is written."""

import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2ckpt.checkpoint import format
from gpt2ckpt.checkpoint.newest_valid import Found
from gpt2ckpt.checkpoint.reading import load, load_state
from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.config.replay import freeze
from gpt2ckpt.errors import InputError
from gpt2ckpt.parallel.process_group import DistributedGroup
from gpt2ckpt.parallel.ranks import Ranks
from gpt2ckpt.parallel.shared_checkpoint import identify, load_identified
from gpt2ckpt.runs.start import Start
from gpt2ckpt.training.agreement import agree, follow
from gpt2ckpt.training.hardware import hardware_of
from gpt2ckpt.training.validate_run import validate_run

FIXTURES = Path(__file__).parents[1] / "checkpoint" / "fixtures"


@pytest.fixture
def pair() -> Iterator[tuple[DistributedGroup, DistributedGroup]]:
    """Two ranks in this process that communicate through a real store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, other = (DistributedGroup(Ranks(rank, rank, 2, "127.0.0.1", port)) for rank in range(2))
    assert first.directory_of_first_attempt() is None
    first._attempt_store.set("there", "")  # opens the store, which the first rank serves here
    yield first, other


def plan_of(token_data: Any, first: DistributedGroup, change: dict[str, Any]) -> None:
    """Do what the first rank does before it claims a directory, with a change to its plan."""
    values = compose_config("train", [*token_data.overrides, "trainer.max_steps=2"]).values
    start = Start(freeze(values), [])
    validated = validate_run(start)
    publish = first.publish_plan
    first.publish_plan = lambda plan: publish({**plan, **change})  # type: ignore[method-assign]
    agree(start, validated, hardware_of(start, validated, first), first)


def outcome_of(
    token_data: Any, pair: tuple[DistributedGroup, DistributedGroup], change: dict[str, Any]
) -> InputError:
    """Return why the second rank refuses; the first must then end with its exit code."""
    first, other = pair
    refusals: list[InputError] = []

    def follow_along() -> None:
        try:
            follow(other, lambda: None)
        except InputError as error:
            refusals.append(error)
            other.report_exit(error.exit_code, str(error))
        except Exception as error:
            other.report_exit(99, repr(error))  # else the first rank would wait for ever

    thread = threading.Thread(target=follow_along, daemon=True)
    thread.start()
    with pytest.raises(SystemExit) as end:
        plan_of(token_data, first, change)
    thread.join()
    assert end.value.code == 1
    return refusals[0]


def test_rank_with_other_data_stops_all_ranks(token_data: Any, pair: Any) -> None:
    refusal = outcome_of(token_data, pair, {"data": "0" * 32})
    assert "this rank reads different data than the first rank" in str(refusal)


def test_rank_with_other_checkpoint_stops_all_ranks(token_data: Any, pair: Any) -> None:
    file = next(FIXTURES.glob("*.pt"))
    refusal = outcome_of(token_data, pair, {"file": str(file), "identity": "another"})
    assert f"{file} differs from the file on the first rank" in str(refusal)


def test_rank_without_the_checkpoint_stops_all_ranks(token_data: Any, pair: Any) -> None:
    refusal = outcome_of(token_data, pair, {"file": "gone.pt", "identity": "any"})
    assert "gone.pt" in str(refusal)


def test_first_exit_report_is_kept(pair: Any) -> None:
    first, other = pair
    assert other.report_exit(1, "out of memory") is None
    assert first.report_exit(0) == 1
    error = first.explain_error(
        RuntimeError("[gloo/pair.cc:5] Connection closed by peer [::1]:5. And")
    )
    assert str(error) == "rank 1: out of memory"


def test_replaced_checkpoint_is_not_published(tmp_path: Path) -> None:
    """The other ranks would fork from a different state than the first."""
    path = tmp_path / "latest.pt"
    shutil.copy(next(FIXTURES.glob("*.pt")), path)
    found = Found(path, load_state(path))
    assert load_identified(path, identify(found)[1]).state.step == found.state.step
    newer = {**load(path), "step": found.state.step + 1}
    path.write_bytes(b"".join(format.encode(newer).buffers))
    with pytest.raises(InputError, match=r"latest\.pt was replaced while it was being read"):
        identify(found)
