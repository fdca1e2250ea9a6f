"""Non-finite losses and weights, loss spikes, and the reactions: stop, skip the batch, roll back.

A step detects an anomaly before it changes the weights, so the state is still good, and the batch
can be skipped. After several anomalies in a row, or with non-finite weights, the weights themselves
are suspect: the run rolls back to its last regular checkpoint and continues after all batches
since. It never rolls back to an emergency checkpoint, because a second run with the same seed would
not have one at that step.
"""

import logging
import math
from collections.abc import Callable, Sequence
from enum import Enum, auto
from statistics import fmean, pstdev

from gpt2ckpt.checkpoint.newest_valid import Found
from gpt2ckpt.checkpoint.state import AnomalyCounts
from gpt2ckpt.config.schema import TrainerConfig
from gpt2ckpt.errors import UserError
from gpt2ckpt.training.state import TrainingState

log = logging.getLogger(__name__)

IN_A_ROW = 3  # anomalies in consecutive batches after which the weights are suspect
LEAST_SPREAD = 1e-3  # least standard deviation, as a share of the mean, for constant losses


class TrainingAnomaly(UserError):
    """A loss or weights that the training cannot continue with."""


class NonFiniteLoss(TrainingAnomaly):
    """A loss or gradient norm that is not finite; the weights are unchanged."""


class LossSpike(TrainingAnomaly):
    """A loss, in nats per token, far above the recent ones; the weights are unchanged."""

    def __init__(self, message: str, loss: float = math.nan) -> None:
        super().__init__(message)
        self.loss = loss


class NonFiniteWeights(TrainingAnomaly):
    """A weight or an optimizer moment that is not finite."""


class Reaction(Enum):
    """The possible reactions to an anomaly."""

    STOP = auto()
    SKIP = auto()
    GO_BACK = auto()


def summary_of(anomaly: TrainingAnomaly) -> str:
    """Return the first part of the message, without the advice on what to do."""
    return str(anomaly).partition(":")[0]


def choose_reaction(
    counts: AnomalyCounts, policy: str, max_rollbacks: int, *, weights_are_non_finite: bool = False
) -> Reaction:
    """Return the reaction to a new anomaly.

    Args:
        counts: The earlier anomalies.
        policy: trainer.on_bad_loss.
        max_rollbacks: trainer.max_rollbacks, the number of anomalies after which the run stops.
        weights_are_non_finite: Whether the weights are not finite.
    """
    if policy == "stop" or counts.handled >= max_rollbacks:
        return Reaction.STOP
    if weights_are_non_finite or counts.in_a_row + 1 >= IN_A_ROW:
        return Reaction.GO_BACK
    return Reaction.SKIP


def resolve_anomaly(
    anomaly: TrainingAnomaly,
    state: TrainingState,
    trainer: TrainerConfig,
    blocks: int,
    last_regular: Callable[[], Found | None],
) -> Found | None:
    """Skip the batch with an anomaly, or return the checkpoint to roll back to.

    Args:
        anomaly: The anomaly.
        state: The training state, which is moved past the batch.
        trainer: The policy and its limits.
        blocks: Number of token blocks in the batch.
        last_regular: Returns the last regular checkpoint, if any.

    Raises:
        TrainingAnomaly: The run must stop: by the policy, after too many anomalies, or because
            there is no checkpoint to roll back to.
    """
    counters, counts = state.counters, state.counters.anomalies
    weights_are_non_finite = isinstance(anomaly, NonFiniteWeights)
    reaction = choose_reaction(
        counts,
        trainer.on_bad_loss,
        trainer.max_rollbacks,
        weights_are_non_finite=weights_are_non_finite,
    )
    found = last_regular() if reaction is Reaction.GO_BACK else None
    if reaction is Reaction.STOP or (reaction is Reaction.GO_BACK and found is None):
        raise _final(anomaly, reaction, trainer, counts.handled) from anomaly
    first = counters.position
    if not weights_are_non_finite:
        counters.position += blocks
    if found is None:
        counts.skip(blocks)
        log.warning(
            "step %d: skipped token blocks %s to %s, anomaly %d of at most %d: %s",
            counters.step + 1,
            f"{first:,}",
            f"{counters.position - 1:,}",
            counts.handled,
            trainer.max_rollbacks,
            summary_of(anomaly),
        )
    return found


def _final(
    anomaly: TrainingAnomaly, reaction: Reaction, trainer: TrainerConfig, handled: int
) -> TrainingAnomaly:
    """Return the error that ends a run, with advice on what to do."""
    if trainer.on_bad_loss == "stop":
        return anomaly
    if reaction is Reaction.GO_BACK:
        advice = (
            ", and there is no regular checkpoint to go back to: train with a lower optimizer.lr, "
            "or save sooner with checkpoint.save_every"
        )
    else:
        advice = (
            f", after {handled} rollbacks: resume with +resume=latest and a lower optimizer.lr, or "
            f"raise trainer.max_rollbacks (now {trainer.max_rollbacks})"
        )
    return type(anomaly)(summary_of(anomaly) + advice)


def roll_back(state: TrainingState, found: Found) -> None:
    """Restore the checkpoint `found`, and move past the token blocks that were read since."""
    position, handled = state.counters.position, state.counters.anomalies.handled
    step = state.counters.step
    state.restore(found.state)
    counters = state.counters
    counters.anomalies.handled = handled + 1
    counters.anomalies.skipped_blocks += position - counters.position
    counters.anomalies.in_a_row = 0
    log.warning(
        "rollback %d: from step %d back to step %d (%s), skipping the %s token blocks since",
        handled + 1,
        step,
        counters.step,
        found.path.name,
        f"{position - counters.position:,}",
    )
    counters.position = position


def spike_score(loss: float, recent: Sequence[float], window: int) -> float:
    """Return how many standard deviations `loss` lies above the mean of the recent losses.

    The mean and the standard deviation are those of `recent`, the last `window` losses. With fewer
    losses, the score is 0.
    """
    if len(recent) < window:
        return 0.0
    mean = fmean(recent)
    return (loss - mean) / max(pstdev(recent, mean), LEAST_SPREAD * abs(mean), 1e-12)


def check_loss(loss: float, norm: float, *, norm_may_overflow: bool) -> None:
    """Raise NonFiniteLoss if the loss or the gradient norm is not finite.

    With `norm_may_overflow`, only the loss is checked: in float16 the gradient scaler skips the
    update of an overflowing gradient and lowers its scale.
    """
    if not math.isfinite(loss) or not (math.isfinite(norm) or norm_may_overflow):
        raise NonFiniteLoss(
            f"the loss is {loss} and the gradient norm {norm}: the weights are unchanged. A resume "
            "with the same settings would fail again: use +resume=latest with a lower "
            "optimizer.lr, or with trainer.on_bad_loss=rollback, which skips the batch"
        )


def check_spike(loss: float, recent: Sequence[float], window: int, zscore: float) -> None:
    """Raise LossSpike for a loss more than `zscore` standard deviations above the recent ones."""
    score = spike_score(loss, recent, window)
    if score > zscore:
        raise LossSpike(
            f"the loss {loss:.4f} lies {score:.1f} standard deviations above the last {window} "
            f"(trainer.spike_zscore={zscore:g}): the weights are unchanged. Resume with "
            "+resume=latest and a lower optimizer.lr, with trainer.on_bad_loss=rollback, which "
            "skips the batch, or with trainer.spike_zscore=null",
            loss,
        )
