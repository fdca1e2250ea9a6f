"""A watcher that fails in any way does not change the result of training.

Watchers are TensorBoard, W&B, the console, text samples, the disk space, the scrub and the progress
bar. Each raises, hangs for an hour, or returns invalid values. A few combinations run by default,
all in watchers.py with GPT2CKPT_WATCHERS=all. experiments/watchers measures the time they cost.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import preload
import pytest

from tests.endtoend.watchers import ALL, MODEL, NONE, Disturbance, Ended, train

IS_COMPLETE = os.environ.get("GPT2CKPT_WATCHERS") == "all"
USUAL = {
    "TensorBoard: hangs",
    "W&B: hangs (service stopped)",
    "console: hangs (pipe without a reader)",
    "text sample: hangs",
    "disk space: hangs",
    "scrub: hangs",
    "progress bar: hangs",
}
CHOSEN = [each for each in ALL if IS_COMPLETE or each.name in USUAL]
STOPPED = [each for each in CHOSEN if each.watcher in ("console", "W&B") and "hangs" in each.way]
STEPS = 40
SETTINGS = [
    *(f"trainer.max_steps={STEPS}", "trainer.sample_every=10", "checkpoint.save_every=4"),
    *("checkpoint.scrub_every=2", "checkpoint.scrub_mb_per_s=10000"),
]


@pytest.fixture(scope="module")
def overrides(token_data: Any) -> list[str]:
    return [*MODEL, f"data.train={token_data.train}", f"data.val={token_data.val}", *SETTINGS]


@pytest.fixture(scope="module")
def ended(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """All training runs, two at a time."""
    folder = tmp_path_factory.mktemp("watchers")
    library = preload.build(folder).library

    def run(number: int, disturbance: Disturbance) -> Ended:
        return train(disturbance, overrides, folder / str(number), library, forks=True)

    everything = [NONE, *CHOSEN]
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(run, range(len(everything)), everything))
    return {each.name: one for each, one in zip(everything, runs, strict=True)}


def test_undisturbed_training_uses_every_watcher(ended: dict[str, Ended]) -> None:
    """Otherwise the faults would have no effect."""
    undisturbed = ended[NONE.name]
    assert undisturbed.code == 0
    for line in ("sample: ", "disk: the run takes", "checked every byte of"):
        assert line in undisturbed.output


@pytest.mark.parametrize("disturbance", CHOSEN, ids=lambda each: each.name)
def test_failing_watcher_does_not_change_the_result(
    ended: dict[str, Ended], disturbance: Disturbance
) -> None:
    found, undisturbed = ended[disturbance.name], ended[NONE.name]
    assert found.differences(undisturbed) == [], found.output[-3000:]
    assert "Traceback" not in found.output


@pytest.mark.parametrize("disturbance", STOPPED, ids=lambda each: each.name)
def test_failing_watcher_does_not_delay_a_save_on_sigterm(
    disturbance: Disturbance, overrides: list[str], tmp_path: Path
) -> None:
    """The training has thirty seconds to end, as under a scheduler."""
    more = ["trainer.max_steps=1000000", "checkpoint.grace_seconds=30"]
    library = preload.build(tmp_path).library
    folder = tmp_path / "run"
    found = train(disturbance, [*overrides, *more], folder, library, stop_after=30, forks=True)
    assert found.code == 143
    assert len(list((found.run / "checkpoints").glob("emergency_step_*.pt"))) == 1
