"""A short run of the torture tests; `make torture MINUTES=30` runs more."""

import subprocess
import sys
from pathlib import Path

from tests.torture.tally import Tally, table

ROOT = Path(__file__).parents[2]
COUNTS = {"--kills": 3, "--damages": 60, "--fuzz": 600, "--disk-full": 2, "--crash-states": 100}


def test_torture_loses_no_state_and_runs_no_code() -> None:
    """It needs its own process: only one without computed tensors can fork training runs."""
    overrides = [word for part, count in COUNTS.items() for word in (part, str(count))]
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.run", *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(COUNTS)
    for row, count in zip(rows, COUNTS.values(), strict=True):
        assert int(row[1]) >= count or "skipped" in row[2], done.stdout
        assert row[3] == "0"


def test_failure_is_reported_with_its_seed() -> None:
    tally = Tally("part", done=3)
    tally.counts["fine"] += 2
    tally.fail(17, "a reason")
    assert tally.failures == ["part, seed 17: a reason"]
    assert table([tally]).splitlines()[-1] == "| part | 3 | fine 2; FAILED 1 | 1 | 0 |"
