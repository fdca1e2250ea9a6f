"""Tests which losses metrics.jsonl should hold, however often a run resumed."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2ckpt.runs.expected_losses import LogIntervals, continued, due, listed


@dataclass(frozen=True)
class Life:
    """One process: its first step, its last step, and how often it logs."""

    back: int
    steps: int
    log_every: int
    eval_every: int
    stopped_before_evaluation: bool


lives = st.lists(
    st.builds(
        Life,
        back=st.integers(0, 8),
        steps=st.integers(1, 30),
        log_every=st.integers(1, 7),
        eval_every=st.integers(0, 7),
        stopped_before_evaluation=st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


def lived(processes: list[Life]) -> tuple[tuple[LogIntervals, ...], set[int], set[int], int]:
    """Return what a run recorded and logged in these processes, and its last step."""
    parts: tuple[LogIntervals, ...] = ()
    train: set[int] = set()
    val: set[int] = set()
    now, evaluated = 0, 0
    for life in processes:
        now = max(0, now - life.back)
        train, val = {s for s in train if s <= now}, {s for s in val if s <= now}
        evaluated = max(val, default=0)
        parts = continued(parts, LogIntervals(now, life.log_every, life.eval_every))
        every = life.eval_every
        if now and every and now % every == 0 and evaluated != now:
            val.add(now)
        for step in range(now + 1, now + life.steps + 1):
            if step % life.log_every == 0 or step == 1:
                train.add(step)
            is_last = step == now + life.steps
            if every and step % every == 0 and not (is_last and life.stopped_before_evaluation):
                val.add(step)
        now += life.steps
    return parts, train, val, now


@given(lives, st.integers(0, 8))
def test_no_loss_is_expected_that_was_not_due(processes: list[Life], back: int) -> None:
    parts, train, val, last = lived(processes)
    until = max(0, last - back)
    expected_train, expected_val = due(parts, until)
    assert expected_train <= {step for step in train if step <= until}
    assert expected_val <= {step for step in val if step <= until}


@given(lives)
def test_each_missing_loss_is_found(
    processes: list[Life],
) -> None:
    parts, train, _, last = lived(processes)
    assert train - due(parts, last)[0] <= {1}  # the first step is logged besides


def test_no_loss_is_expected_of_a_branch_without_a_record() -> None:
    parts = continued((LogIntervals(0, 1, 1),), LogIntervals(20, 2, 0), shared=10)
    assert due(parts, 24) == ({*range(1, 11), 22, 24}, set(range(1, 10)))


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (LogIntervals(5, 1, 1), LogIntervals(-9, 1, 1)),
        (LogIntervals(1 << 70, 3, 0),),
    ],
)
def test_invalid_record_raises_nothing(parts: tuple[LogIntervals, ...]) -> None:
    assert all(0 < step <= 8 for steps in due(parts, 8) for step in steps)


def test_many_steps_are_listed_by_the_first_few_and_the_last() -> None:
    assert listed([3, 1, 2]) == "1, 2, 3"
    assert listed(range(1, 1001)) == "1, 2, 3, 4, 5, … 1,000"
