"""Tests of which steps keep their W&B run when they are trained again."""

import random
from typing import Any

import pytest
from run_helpers import frozen_of

from gpt2ckpt.runs.wandb_lineage import WandbLineage, WandbRun, decode, encode, settings_digest


def fresh() -> WandbLineage:
    return WandbLineage("run", "run", {"run": WandbRun([(0, "a")])})


def test_crash_keeps_the_wandb_run() -> None:
    after = fresh().logged_to(137).continue_from("run", 120, "a")
    assert after.active == "run"
    assert after.active_run == WandbRun([(0, "a")], 137)


def test_new_settings_at_the_end_keep_the_wandb_run() -> None:
    after = fresh().logged_to(120).continue_from("run", 120, "b")
    assert after.active == "run"
    assert after.active_run.parts == [(0, "a"), (120, "b")]
    assert (after.active_run.settings_of(120), after.active_run.settings_of(121)) == ("a", "b")


def test_new_settings_in_the_middle_start_a_linked_run_with_a_reproducible_id() -> None:
    once, again = (fresh().logged_to(137).continue_from("run", 120, "b") for _ in range(2))
    assert once == again
    assert once.active.startswith("run-")
    assert once.active_run == WandbRun([(0, "a"), (120, "b")], 120, origin=("run", 120))
    assert once.by_id["run"] == WandbRun([(0, "a")], 137)
    assert fresh().logged_to(137).continue_from("run", 120, "c").active != once.active


def test_linked_run_killed_before_its_first_save_is_found_again() -> None:
    """The state to resume from is still one of the first W&B run."""
    linked = fresh().logged_to(137).continue_from("run", 120, "b")
    assert linked.logged_to(125).continue_from("run", 120, "b").active == linked.active
    assert linked.logged_to(125).continue_from("run", 120, "a").active == "run"


def test_rollback_past_a_change_without_it_starts_a_linked_run() -> None:
    """The settings of the state are those of its steps; W&B has later steps with others."""
    changed = fresh().logged_to(100).continue_from("run", 100, "b").logged_to(200)
    back = changed.continue_from("run", 50, "a")
    assert back.active_run == WandbRun([(0, "a")], 50, origin=("run", 50))
    assert changed.continue_from("run", 100, "b").active == "run"
    assert changed.continue_from("run", 150, "b").active == "run"
    third = back.logged_to(90).continue_from(back.active, 60, "b")
    assert third.active_run.origin == (back.active, 60)


def test_no_step_is_logged_twice_with_other_settings() -> None:
    """After any random resumes, what each W&B run has of a step never changes."""
    for seed in range(200):
        dice, lineage, own = random.Random(seed), fresh(), {0: "run"}
        sent: dict[tuple[str, int], str] = {}
        end, settings = 0, "a"
        for _ in range(12):
            for step in range(end + 1, end + dice.randrange(1, 30)):
                key = (lineage.active, step)
                assert sent.setdefault(key, settings) == settings, seed
                assert lineage.active_run.settings_of(step) == settings, seed
                own[step], end = lineage.active, step
            lineage = lineage.logged_to(end)
            end, settings = dice.randrange(end + 1), dice.choice("aabc")
            lineage = lineage.continue_from(own[end], end, settings)


def test_decode_inverts_encode() -> None:
    lineage = fresh().logged_to(137).continue_from("run", 120, "b")
    assert decode(encode(lineage)) == lineage
    for text in ("", "[]", "{}", '{"run_id": 1, "active": "x", "curves": {}}', '{"curves": 3}'):
        assert decode(text) is None


@pytest.mark.parametrize(
    ("word", "is_same"),
    [
        *(("trainer.log_every=3", True), ("checkpoint.save_every=7", True), ("name=x", True)),
        *(("trainer.device=cpu", True), ("trainer.threads=2", True), ("logger=none", True)),
        *(("optimizer.lr=1e-5", False), ("seed=3", False), ("trainer.max_steps=9", False)),
    ],
)
def test_settings_digest_changes_only_with_the_losses(word: str, is_same: bool) -> None:
    first: dict[str, Any] = frozen_of(())
    assert (settings_digest(first) == settings_digest(frozen_of((word,)))) is is_same
