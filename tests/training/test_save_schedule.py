"""A save is due at intervals, at the last step, for a best model and at the end of an epoch."""

import pytest

from gpt2ckpt.config.schema import CheckpointConfig
from gpt2ckpt.training.save_schedule import DueSave, is_due, save_due

POLICY = CheckpointConfig(save_every=4, save_best=True, save_epochs=True)


def due(
    policy: CheckpointConfig, step: int, *, best: bool = False, epoch: int | None = None
) -> DueSave:
    return save_due(policy, step, 10, is_best=best, epoch_ended=epoch)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (3, DueSave("regular", regular=False, best=False, epoch_ended=None)),
        (4, DueSave("regular", regular=True, best=False, epoch_ended=None)),
        (10, DueSave("final", regular=True, best=False, epoch_ended=None)),
    ],
)
def test_regular_save_is_due_at_intervals_and_at_last_step(step: int, expected: DueSave) -> None:
    assert due(POLICY, step) == expected


def test_best_and_epoch_saves_are_due_only_if_switched_on() -> None:
    both = due(POLICY, 3, best=True, epoch=0)
    assert (both.regular, both.best, both.epoch_ended) == (False, True, 0)
    neither = due(CheckpointConfig(save_best=False, save_epochs=False), 3, best=True, epoch=0)
    assert (neither.best, neither.epoch_ended) == (False, None)


def test_interval_of_zero_is_never_due() -> None:
    assert [step for step in range(7) if is_due(step, 3)] == [0, 3, 6]
    assert not any(is_due(step, 0) for step in range(7))
    assert due(CheckpointConfig(save_every=0), 10).regular
