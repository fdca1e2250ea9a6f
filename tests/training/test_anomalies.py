"""Reactions to anomalies as pure functions; test_rollback.py tests them in complete runs."""

import math
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2ckpt.training.anomalies import (
    IN_A_ROW,
    AnomalyCounts,
    LossSpike,
    NonFiniteLoss,
    Reaction,
    check_loss,
    check_spike,
    choose_reaction,
    spike_score,
)

LOSSES = st.lists(st.floats(0.01, 20), min_size=2, max_size=30)


def test_policy_stop_always_stops() -> None:
    assert choose_reaction(AnomalyCounts(), "stop", 10) is Reaction.STOP
    assert (
        choose_reaction(AnomalyCounts(), "stop", 10, weights_are_non_finite=True) is Reaction.STOP
    )


def test_batch_is_skipped_and_repeated_anomalies_go_back() -> None:
    counts, answers = AnomalyCounts(), []
    for _ in range(IN_A_ROW):
        answers.append(choose_reaction(counts, "rollback", 10))
        counts.skip(8)
    assert answers == [Reaction.SKIP] * (IN_A_ROW - 1) + [Reaction.GO_BACK]
    assert (
        choose_reaction(AnomalyCounts(), "rollback", 10, weights_are_non_finite=True)
        is Reaction.GO_BACK
    )
    counts.accept(1.0, 0)
    assert choose_reaction(counts, "rollback", 10) is Reaction.SKIP  # a good step in between
    assert counts == AnomalyCounts(handled=3, skipped_blocks=24, in_a_row=0, recent=[])


@given(st.integers(0, 20), st.integers(0, 5), st.booleans())
def test_max_rollbacks_is_never_exceeded(most: int, row: int, bad: bool) -> None:
    counts = AnomalyCounts(handled=most, in_a_row=row)
    assert choose_reaction(counts, "rollback", most, weights_are_non_finite=bad) is Reaction.STOP


@given(LOSSES, st.integers(2, 10))
def test_window_holds_last_losses(losses: list[float], window: int) -> None:
    counts = AnomalyCounts()
    for loss in losses:
        counts.accept(loss, window)
    assert counts.recent == losses[-window:]


@given(LOSSES, st.floats(0.01, 50))
def test_spike_score_counts_standard_deviations(losses: list[float], loss: float) -> None:
    assert spike_score(loss, losses, len(losses) + 1) == 0.0  # the window is not full
    mean, spread = fmean(losses), pstdev(losses)
    score = spike_score(loss, losses, len(losses))
    assert math.isfinite(score)
    if spread > 0.01 * mean:
        assert score == pytest.approx((loss - mean) / spread, rel=1e-6, abs=1e-9)
    if loss <= mean:
        assert score <= 1e-9


def test_nearly_constant_losses_do_not_turn_small_step_into_spike() -> None:
    assert spike_score(2.001, [2.0] * 10, 10) == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_non_finite_loss_and_norm_are_refused(number: float) -> None:
    check_loss(1.0, 1.0, norm_may_overflow=False)
    check_loss(1.0, number, norm_may_overflow=True)  # float16
    for loss, norm, may in ((number, 1.0, False), (number, 1.0, True), (1.0, number, False)):
        with pytest.raises(NonFiniteLoss, match=r"the weights are unchanged.*on_bad_loss=rollback"):
            check_loss(loss, norm, norm_may_overflow=may)


def test_spike_message_gives_the_score() -> None:
    recent = [1.0, 1.1, 0.9, 1.0]
    check_spike(1.2, recent, 4, 3.0)
    with pytest.raises(LossSpike, match=r"the loss 9\.0000 lies 113\.1 standard deviations above"):
        check_spike(9.0, recent, 4, 3.0)
