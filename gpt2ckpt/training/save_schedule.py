"""Decides when a save is due: after which steps, and in which roles.

Emergency saves are not decided here: the training loop makes them after a signal or an error.
"""

from dataclasses import dataclass

from gpt2ckpt.config.schema import CheckpointConfig


@dataclass(frozen=True)
class DueSave:
    """The roles of the state after a step. Without any role, no save is due."""

    reason: str
    regular: bool
    best: bool
    epoch_ended: int | None


def is_due(step: int, every: int) -> bool:
    """Return whether an action every `every` steps is due after `step`; 0 is never."""
    return every > 0 and step % every == 0


def save_due(
    checkpoint: CheckpointConfig,
    step: int,
    last_step: int,
    *,
    is_best: bool,
    epoch_ended: int | None,
) -> DueSave:
    """Return the save that is due after `step`.

    Args:
        checkpoint: The checkpoint group of the config.
        step: Optimizer steps done.
        last_step: The last step of the run.
        is_best: Whether the evaluation after this step had the lowest loss so far.
        epoch_ended: The epoch that ended with this step, counted from 0; None inside an epoch.
    """
    is_last = step == last_step
    return DueSave(
        reason="final" if is_last else "regular",
        regular=is_last or is_due(step, checkpoint.save_every),
        best=is_best and checkpoint.save_best,
        epoch_ended=epoch_ended if checkpoint.save_epochs else None,
    )
