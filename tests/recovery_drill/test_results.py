"""The drill's report: cost, disk need and differences, computed from measurements."""

from dataclasses import replace
from typing import Any

import pytest

from gpt2ckpt.config.schema import CheckpointConfig
from gpt2ckpt.recovery_drill.filesystem_checks import Check, FileSystem
from gpt2ckpt.recovery_drill.results import (
    Cost,
    DrillResult,
    Kill,
    Recovery,
    Settings,
    differing_losses,
    differing_state,
    disk_need,
)
from gpt2ckpt.recovery_drill.summary import verdict

COST = Cost(
    step=0.5, first_stall=0.3, stall=0.1, durable_after=2.0, restart=6.0, size=100, free=10_000
)
SETTINGS = Settings(
    total_steps=1000,
    steps_per_epoch=100.0,
    checkpoint=CheckpointConfig(
        save_every=100, keep_rolling=10, keep_emergency=5, keep_epochs=None, save_epochs=True
    ),
    ranks=1,
)


def with_epochs(**changes: Any) -> Settings:
    return replace(SETTINGS, checkpoint=replace(SETTINGS.checkpoint, **changes))


RECOVERY = Recovery(Kill("rolling_step_000004.pt", 4, 2), 9, identical_steps=2, tensors=115)
GOOD = DrillResult(
    SETTINGS, FileSystem("ext4", "/dev/sda", [Check("delete")], True), RECOVERY, COST
)


def test_crash_costs_an_interval_and_the_unfinished_save() -> None:
    assert COST.interval(100) == pytest.approx(100 * 0.5 + 0.1)
    assert COST.lost_by_crash(100) == pytest.approx(100 * 0.5 + 0.1 + 2.0)


def test_saves_faster_than_the_disk_wait() -> None:
    assert COST.interval(1) == pytest.approx(2.0)
    assert COST.stall_fraction(1) == pytest.approx(0.75)
    assert COST.stall_fraction(100) == pytest.approx(0.1 / 50.1)
    assert COST.written_per_hour(1) == pytest.approx(2 * 100 * 1800)


def test_disk_with_enough_space_is_never_full() -> None:
    need = disk_need(SETTINGS, COST)
    assert (need.others, need.epochs, need.hours) == ((10 + 5 + 8) * 100, 10 * 100, None)
    few = disk_need(with_epochs(keep_epochs=3), COST)
    assert (few.others, few.epochs) == (need.others, 3 * 100)


def test_disk_too_small_without_epochs_is_full_after_hours_of_saves() -> None:
    need = disk_need(SETTINGS, replace(COST, free=1000))
    assert need.hours == pytest.approx(10 * 50.1 / 3600)


def test_disk_too_small_for_epochs_is_full_after_hours_of_epochs() -> None:
    need = disk_need(SETTINGS, replace(COST, free=2800))
    assert need.hours == pytest.approx(5 * 100 * 0.5 / 3600)
    assert disk_need(with_epochs(save_epochs=False), replace(COST, free=2800)).hours is None


def events(*losses: float) -> list[dict[str, Any]]:
    return [{"step": step, "train_loss": loss} for step, loss in enumerate(losses, start=1)]


def test_first_differing_loss_is_reported() -> None:
    assert differing_losses(events(3.0, 2.0), events(3.0, 2.0), 2) == []
    assert differing_losses(events(3.0, 2.0), events(3.0, 2.5), 2) == ["step 2: loss 2.0 and 2.5"]


@pytest.mark.parametrize("damaged", [events(3.0), [*events(3.0), *events(3.0)]])
def test_missing_or_repeated_step_is_reported(damaged: list[dict[str, Any]]) -> None:
    [line] = differing_losses(damaged, events(3.0, 2.0), 2)
    assert line == "metrics.jsonl of the killed run does not have each step exactly once"


def test_differing_position_or_generator_is_reported() -> None:
    state = {"step": 2, "data": {"position": 8}, "rng": {"python": [1, 2]}, "saved_at": "now"}
    assert differing_state(state, {**state, "saved_at": "later"}) == []
    assert differing_state(state, {**state, "data": {"position": 4}}) == ["data.position: 8 and 4"]
    [line] = differing_state(state, {**state, "rng": {"python": [1, 3]}})
    assert line.startswith("rng: ")


def test_report_of_a_passed_drill() -> None:
    page = "\n".join(verdict(GOOD))
    assert "2 steps trained again with identical losses" in page
    assert "yes, bitwise: all 115 tensors and 9 losses" in page
    assert "costs at most 52.1 s of work (checkpoint.save_every=100)" in page
    assert "100 (now)" in page and "PASSED" in page
    assert len(verdict(GOOD)) < 40 and "FULL AFTER" not in page


def test_report_of_a_failed_drill() -> None:
    lines = [f"model.h.{n}: its values differ" for n in range(8)]
    bad = replace(GOOD, recovery=replace(RECOVERY, differing=lines))
    page = "\n".join(verdict(bad))
    assert "NO: 8 differences" in page and "and 3 more" in page and "PASSED" not in page
    assert "FAILED       the resume was not exact" in page
    disk = FileSystem("ext4", "/dev/sda", [Check("delete", "Input/output error")], True)
    assert GOOD.passed and not bad.passed and not replace(GOOD, file_system=disk).passed


def test_report_warns_of_tmpfs_and_of_a_full_disk() -> None:
    memory = replace(GOOD, file_system=FileSystem("tmpfs", "tmpfs"))
    assert "every checkpoint is lost when the machine restarts" in "\n".join(verdict(memory))
    full = replace(GOOD, cost=replace(COST, free=1000))
    assert "FULL AFTER 0.1 HOURS" in "\n".join(verdict(full))
