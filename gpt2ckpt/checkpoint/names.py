"""The names in a checkpoints/ folder and the roles that they stand for."""

import re
from datetime import datetime
from enum import StrEnum


class Role(StrEnum):
    """What a file in checkpoints/ is kept for."""

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
    """The role of a file name; None for a file that is not ours."""
    if name in _FIXED:
        return _FIXED[name]
    return next((role for role, form in _NUMBERED.items() if form.fullmatch(name)), None)


def number_in(name: str) -> int | None:
    """The step in a rolling or emergency name, the epoch in an epoch name; else None."""
    matches = (form.fullmatch(name) for form in _NUMBERED.values())
    return next((int(match[1]) for match in matches if match), None)
