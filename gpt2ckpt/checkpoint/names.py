"""The names of files in a checkpoints/ folder, and their roles."""

import re
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

from gpt2ckpt.checkpoint.state import CheckpointMeta


class Role(StrEnum):
    """The purpose that a file in checkpoints/ is kept for."""

    LATEST = "latest"
    LATEST_BACKUP = "latest_backup"
    ROLLING = "rolling"
    ROLLING_BACKUP = "rolling_last_backup"
    EMERGENCY = "emergency"
    BEST = "best"
    BEST_BACKUP = "best_backup"
    BEST_PREVIOUS = "best_previous"
    EPOCH = "epoch"


LATEST = "latest.pt"
LATEST_BACKUP = "latest_backup.pt"
ROLLING_BACKUP = "rolling_last_backup.pt"
BEST = "best_model.pt"
BEST_BACKUP = "best_model_backup.pt"
BEST_PREVIOUS = "best_model_previous.pt"

_FIXED = {
    LATEST: Role.LATEST,
    LATEST_BACKUP: Role.LATEST_BACKUP,
    ROLLING_BACKUP: Role.ROLLING_BACKUP,
    BEST: Role.BEST,
    BEST_BACKUP: Role.BEST_BACKUP,
    BEST_PREVIOUS: Role.BEST_PREVIOUS,
}
_NUMBERED = {
    Role.ROLLING: re.compile(r"rolling_step_([0-9]{6,})\.pt"),
    Role.EMERGENCY: re.compile(r"emergency_step_([0-9]{6,})_[0-9]{8}_[0-9]{6}\.pt"),
    Role.EPOCH: re.compile(r"epoch_([0-9]{5,})\.pt"),
}


def rolling(step: int) -> str:
    return f"rolling_step_{step:06d}.pt"


def emergency(step: int, when: datetime) -> str:
    return f"emergency_step_{step:06d}_{when:%Y%m%d_%H%M%S}.pt"


def epoch(number: int) -> str:
    return f"epoch_{number:05d}.pt"


def role_of(name: str) -> Role | None:
    """Return the role of a file name; None for a user's own file."""
    if name in _FIXED:
        return _FIXED[name]
    return next((role for role, form in _NUMBERED.items() if form.fullmatch(name)), None)


def number_in(name: str) -> int | None:
    """Return the step in a rolling or emergency name, or the epoch in an epoch name, or None."""
    matches = (form.fullmatch(name) for form in _NUMBERED.values())
    return next((int(match[1]) for match in matches if match), None)


def content_mismatch(name: str, meta: CheckpointMeta) -> str | None:
    """Return why a file with this metadata was not saved as `name`; None if it may have been.

    The digests do not cover the name of a file. So this check finds valid files that were swapped.
    """
    step, number = meta.step, number_in(name)
    match role_of(name):
        case Role.ROLLING | Role.EMERGENCY if step != number:
            return f"it holds step {step}: a different file is in its place"
        case Role.EPOCH if number is not None and not ends_epoch(meta, number):
            return (
                f"it holds step {step}, not the end of epoch {number}: a different file is in its "
                "place"
            )
        case Role.BEST | Role.BEST_BACKUP | Role.BEST_PREVIOUS:
            if meta.has("best_step") and meta.best_step != step:
                return f"it holds step {step}, not a best one: a different file is in its place"
    return None


def ends_epoch(meta: CheckpointMeta, number: int) -> bool:
    """Return whether a state was reached by the step that ended epoch `number`.

    The position of such a state is beyond that end by less than the blocks of one step. Returns
    True if the state does not record its position.
    """
    if meta.has("epoch") and meta.epoch != number + 1:
        return False
    data, blocks = meta.data, meta.blocks_per_step
    if blocks is None or not (meta.has("data.position") and meta.has("data.blocks_per_epoch")):
        return True
    return 0 <= data.position - (number + 1) * data.blocks_per_epoch < blocks


def inconsistencies(steps: Mapping[str, int]) -> dict[str, str]:
    """Return a message for each file whose step does not fit the other files, by file name.

    An interrupted save or resume leaves such files too, and they lose nothing.

    Args:
        steps: The step that each file of the folder holds.
    """
    numbered = [name for name in steps if role_of(name) in _NUMBERED]
    newest = max((steps[name] for name in [*numbered, LATEST_BACKUP] if name in steps), default=0)
    rolling_steps = [steps[name] for name in numbered if role_of(name) is Role.ROLLING]
    found = {}
    if steps.get(LATEST, newest) < newest:
        found[LATEST] = f"a later state exists, step {newest}"
    before = max(
        (steps[name] for name in numbered if steps[name] < steps.get(LATEST, 0)), default=-1
    )
    if steps.get(LATEST_BACKUP, before) < before:
        found[LATEST_BACKUP] = f"a later state before the latest exists, step {before}"
    if rolling_steps and steps.get(ROLLING_BACKUP, -1) not in (-1, max(rolling_steps)):
        found[ROLLING_BACKUP] = "it is not a copy of the newest rolling checkpoint"
    if BEST in steps and steps.get(BEST_BACKUP, steps[BEST]) != steps[BEST]:
        found[BEST_BACKUP] = f"it is not a copy of {BEST}"
    if BEST in steps and steps.get(BEST_PREVIOUS, -1) >= steps[BEST]:
        found[BEST_PREVIOUS] = f"it is not older than {BEST}"
    return found
