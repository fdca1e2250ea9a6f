"""Signals at random moments of runs, including start and end: see ctrl_c.py."""

import os
import random
import signal
from pathlib import Path
from typing import Any

from ctrl_c import STEPS, stop_often

COUNT = int(os.environ.get("CTRL_C_COUNT", "4"))  # each takes some three seconds
SEED = int(os.environ.get("CTRL_C_SEED", random.randrange(1 << 30)))


def test_signal_at_any_moment_gives_the_right_exit_code_and_valid_files(
    token_data: Any, tmp_path: Path
) -> None:
    overrides = [*token_data.overrides, f"trainer.max_steps={STEPS}", "checkpoint.save_every=10"]
    overrides += ["trainer.eval_every=25", "trainer.eval_steps=3"]
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    stops = list(stop_often(overrides, tmp_path, COUNT, SEED, numbers))
    assert [stop for stop in stops if stop.problem] == [], f"seed {SEED}"
    assert {stop.phase for stop in stops} >= {"training"}
