"""A job finds its directory by what it trains, and never takes another's."""

from pathlib import Path
from typing import Any

import pytest

from gpt2ckpt.sweeps.matching import Job, RecordedJob, find_own, swept_keys

CONFIG: dict[str, Any] = {
    "seed": 1,
    "optimizer.lr": 0.1,
    "trainer.max_steps": 10,
    "checkpoint.save_every": 5,
    "model.n_layer": 2,
    "model.init_from": None,
}


def recorded(name: str, *overrides: str, **changed: Any) -> RecordedJob:
    return RecordedJob(
        Path(name), {**CONFIG, **_dotted(changed)}, list(overrides) or ["of an old command"], 10
    )


def job(*overrides: str, swept: tuple[str, ...] = ("optimizer.lr",), **changed: Any) -> Job:
    return Job(list(overrides) or ["of a new one"], {**CONFIG, **_dotted(changed)}, list(swept))


def _dotted(changed: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in changed.items()}


def test_the_same_config_is_found_under_any_number() -> None:
    folders = [recorded("0", optimizer__lr=0.3), recorded("1", optimizer__lr=0.2), recorded("2")]
    assert find_own(job(), folders) == folders[2]
    assert find_own(job(optimizer__lr=0.2), folders) == folders[1]
    assert find_own(job(optimizer__lr=0.5), folders) is None


def test_the_same_overrides_are_the_same_job_whatever_has_become_of_conf() -> None:
    old = recorded("0", "optimizer.lr=0.1", "seed=1", model__n_layer=4)
    assert find_own(job("seed=1", "optimizer.lr=0.1"), [old]) == old


@pytest.mark.parametrize("key", ["trainer__max_steps", "checkpoint__save_every"])
def test_a_job_may_become_longer_or_save_more_often(key: str) -> None:
    folders = [recorded("0", optimizer__lr=0.3), recorded("1")]
    assert find_own(job(**{key: 20}), folders) == folders[1]


def test_a_length_that_is_swept_makes_another_job() -> None:
    assert (
        find_own(job(swept=("trainer.max_steps",), trainer__max_steps=20), [recorded("0")]) is None
    )


def test_of_two_that_are_alike_none_is_taken() -> None:
    folders = [recorded("0", trainer__max_steps=20), recorded("1", trainer__max_steps=30)]
    assert find_own(job(), folders) is None


def test_a_swept_group_that_may_change_anything_is_matched_exactly_only() -> None:
    alike = job(swept=("experiment",), trainer__max_steps=20)
    assert find_own(alike, [recorded("0")]) is None
    assert find_own(job(swept=("experiment",)), [recorded("0")]) is not None


def test_pretrained_weights_bring_a_shape_that_the_command_does_not_name() -> None:
    old = recorded("0", model__init_from="gpt2", model__n_layer=12)
    assert find_own(job(model__init_from="gpt2"), [old]) == old
    assert find_own(job(), [recorded("0", model__n_layer=12)]) is None


def test_the_label_is_what_tells_a_job_from_the_others() -> None:
    words = ["optimizer.lr=0.1", "seed=1"]
    assert job(*words).label == "optimizer.lr=0.1"
    assert job(*words, swept=()).label == "optimizer.lr=0.1 seed=1"
    assert swept_keys(["optimizer.lr=1,2", "seed=3", "model=choice(a,b)"]) == [
        "optimizer.lr",
        "model",
    ]
