"""Reactions to an anomaly: skipping a batch, or going back to a checkpoint."""

import logging
from collections.abc import Callable

from gpt2ckpt.checkpoint.store import Found
from gpt2ckpt.config.schema import TrainerConfig
from gpt2ckpt.training.anomalies import (
    NonFiniteWeights,
    Reaction,
    TrainingAnomaly,
    choose_reaction,
    summary_of,
)
from gpt2ckpt.training.state import TrainingState

log = logging.getLogger(__name__)


def resolve_anomaly(
    bad: TrainingAnomaly,
    state: TrainingState,
    trainer: TrainerConfig,
    blocks: int,
    last_regular: Callable[[], Found | None],
) -> Found | None:
    """Move `state` past the `blocks` blocks that `bad` came from, or find where to go back to.

    Returns the checkpoint to go back to, if that is the answer. Raises `bad` if the run must stop:
    the policy says so, there were too many before, or there is no checkpoint to go back to.
    """
    counters, counts = state.counters, state.counters.anomalies
    weights_are_bad = isinstance(bad, NonFiniteWeights)
    what = choose_reaction(
        counts, trainer.on_bad_loss, trainer.max_rollbacks, weights_are_bad=weights_are_bad
    )
    found = last_regular() if what is Reaction.GO_BACK else None
    if what is Reaction.STOP or (what is Reaction.GO_BACK and found is None):
        if trainer.on_bad_loss == "stop":
            raise bad
        happened = summary_of(bad)
        if what is Reaction.GO_BACK:
            raise type(bad)(
                f"{happened}, and there is no regular checkpoint to go back to: train with a lower "
                "optimizer.lr, or save sooner with checkpoint.save_every"
            ) from bad
        raise type(bad)(
            f"{happened}, after {counts.handled} rollbacks: resume with +resume=latest and a "
            f"lower optimizer.lr, or raise trainer.max_rollbacks (now {trainer.max_rollbacks})"
        ) from bad
    first = counters.position
    if not weights_are_bad:
        counters.position += blocks
    if found is None:
        counts.skip(blocks)
        log.warning(
            "step %d: blocks %s to %s are skipped, rollback %d of at most %d: %s",
            *(counters.step + 1, f"{first:,}", f"{counters.position - 1:,}"),
            *(counts.handled, trainer.max_rollbacks, summary_of(bad)),
        )
    return found


def roll_back(state: TrainingState, found: Found) -> None:
    """Bring `found` back into `state`, past all blocks that were trained or skipped since."""
    position, handled = state.counters.position, state.counters.anomalies.handled
    step = state.counters.step
    state.restore(found.state)
    counters = state.counters
    counters.anomalies.handled = handled + 1
    counters.anomalies.skipped_blocks += position - counters.position
    counters.anomalies.in_a_row = 0
    log.warning(
        "rollback %d: from step %d back to step %d (%s), past the %s blocks since",
        *(handled + 1, step, counters.step, found.path.name),
        f"{position - counters.position:,}",
    )
    counters.position = position
