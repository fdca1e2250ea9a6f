"""Matching jobs of a resumed sweep with their directories."""

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


def test_same_config_matches_under_any_number() -> None:
    folders = [recorded("0", optimizer__lr=0.3), recorded("1", optimizer__lr=0.2), recorded("2")]
    assert find_own(job(), folders) == folders[2]
    assert find_own(job(optimizer__lr=0.2), folders) == folders[1]
    assert find_own(job(optimizer__lr=0.5), folders) is None


def test_same_overrides_match_after_conf_changed() -> None:
    old = recorded("0", "optimizer.lr=0.1", "seed=1", model__n_layer=4)
    assert find_own(job("seed=1", "optimizer.lr=0.1"), [old]) == old


@pytest.mark.parametrize("key", ["trainer__max_steps", "checkpoint__save_every"])
def test_longer_or_more_often_saved_job_matches(key: str) -> None:
    folders = [recorded("0", optimizer__lr=0.3), recorded("1")]
    assert find_own(job(**{key: 20}), folders) == folders[1]


def test_swept_length_is_another_job() -> None:
    assert (
        find_own(job(swept=("trainer.max_steps",), trainer__max_steps=20), [recorded("0")]) is None
    )


def test_ambiguous_jobs_do_not_match() -> None:
    folders = [recorded("0", trainer__max_steps=20), recorded("1", trainer__max_steps=30)]
    assert find_own(job(), folders) is None


def test_swept_group_is_matched_exactly() -> None:
    alike = job(swept=("experiment",), trainer__max_steps=20)
    assert find_own(alike, [recorded("0")]) is None
    assert find_own(job(swept=("experiment",)), [recorded("0")]) is not None


def test_job_with_pretrained_weights_matches() -> None:
    old = recorded("0", model__init_from="gpt2", model__n_layer=12)
    assert find_own(job(model__init_from="gpt2"), [old]) == old
    assert find_own(job(), [recorded("0", model__n_layer=12)]) is None


def test_label_contains_the_swept_overrides() -> None:
    arguments = ["optimizer.lr=0.1", "seed=1"]
    assert job(*arguments).label == "optimizer.lr=0.1"
    assert job(*arguments, swept=()).label == "optimizer.lr=0.1 seed=1"
    assert swept_keys(["optimizer.lr=1,2", "seed=3", "model=choice(a,b)"]) == [
        "optimizer.lr",
        "model",
    ]
