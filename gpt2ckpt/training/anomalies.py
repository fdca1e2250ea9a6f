"""What to do about a loss or a gradient that is no finite number, a loss that jumps, bad weights.

The step that meets one has not touched the weights, so the state before it is good: the batch is
skipped. Where several in a row are bad, or a weight is, the weights themselves must be older than
the trouble: the run goes back to its last regular checkpoint, past all batches since. Regular ones
alone count, since an emergency one stands at a step that no other run of the same seed would have.
"""

import math
from collections.abc import Sequence
from enum import Enum, auto
from statistics import fmean, pstdev

from gpt2ckpt.checkpoint.state import AnomalyCounts
from gpt2ckpt.errors import UserError

IN_A_ROW = 3  # bad batches one after the other that cast doubt on the weights
LEAST_SPREAD = 1e-3  # of the mean: losses that hardly differ make no spike of a small step


class TrainingAnomaly(UserError):
    """A number that no training can be made with."""


class NonFiniteLoss(TrainingAnomaly):
    """A loss or gradient norm that is not a finite number; the weights have not seen it."""


class LossSpike(TrainingAnomaly):
    """A loss far above those before it, in nats per token; the weights have not seen it."""

    def __init__(self, message: str, loss: float = math.nan) -> None:
        super().__init__(message)
        self.loss = loss


class NonFiniteWeights(TrainingAnomaly):
    """A weight or a moment of the optimizer that is not a finite number."""


class Reaction(Enum):
    STOP = auto()
    SKIP = auto()
    GO_BACK = auto()


def summary_of(bad: TrainingAnomaly) -> str:
    """Return what happened, without the advice on what to do."""
    return str(bad).partition(":")[0]


def choose_reaction(
    counts: AnomalyCounts, policy: str, max_rollbacks: int, *, weights_are_bad: bool = False
) -> Reaction:
    """What to do about a bad number that has just come."""
    if policy == "stop" or counts.handled >= max_rollbacks:
        return Reaction.STOP
    if weights_are_bad or counts.in_a_row + 1 >= IN_A_ROW:
        return Reaction.GO_BACK
    return Reaction.SKIP


def spike_score(loss: float, recent: Sequence[float], window: int) -> float:
    """How many standard deviations `loss` lies above the mean of the last `window` losses.

    0 until there are so many.
    """
    if len(recent) < window:
        return 0.0
    mean = fmean(recent)
    return (loss - mean) / max(pstdev(recent, mean), LEAST_SPREAD * abs(mean), 1e-12)


def check_loss(loss: float, norm: float, *, norm_may_overflow: bool) -> None:
    """Raise NonFiniteLoss for a loss or gradient norm that must not reach the weights.

    With float16 an overflowing gradient is normal: the scaler skips the step and halves.
    """
    if not math.isfinite(loss) or not (math.isfinite(norm) or norm_may_overflow):
        raise NonFiniteLoss(
            f"the loss is {loss} and the gradient norm {norm}: the weights have not seen it. To go "
            "on as before would meet it again: +resume=latest with a lower optimizer.lr, or with "
            "trainer.on_bad_loss=rollback, which skips the batch"
        )


def check_spike(loss: float, recent: Sequence[float], window: int, zscore: float) -> None:
    """Raise LossSpike for a loss more than `zscore` standard deviations above the recent ones."""
    score = spike_score(loss, recent, window)
    if score > zscore:
        raise LossSpike(
            f"the loss {loss:.4f} lies {score:.1f} standard deviations above the last {window} "
            f"(trainer.spike_zscore={zscore:g}): the weights have not seen it. To go on: "
            "+resume=latest with a lower optimizer.lr, with trainer.on_bad_loss=rollback, which "
            "skips the batch, or with trainer.spike_zscore=null",
            loss,
        )
