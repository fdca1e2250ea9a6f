"""Crash states by the simulator of tests/checkpoint/crash_states.py."""

import sys
import time
from pathlib import Path

from tests.torture.tally import Tally

CHUNK = 400  # states between two looks at what failed


def torture(folder: Path, states: int, seed: int) -> Tally:
    """Check `count` different crash states of random histories with every role."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
    from crash_states import run_crash_states

    tally, begun = Tally("crash states"), time.monotonic()
    while tally.done < states:
        count = min(CHUNK, states - tally.done)
        try:
            done = run_crash_states(count, seed, folder)
        except AssertionError as error:
            tally.fail(seed, str(error))
            tally.done += count
        else:
            tally.done += done.states
            tally.counts["a valid state found, as new as promised"] += done.states
            tally.counts["calls recorded"] += done.calls
        seed += 1000
    tally.seconds = time.monotonic() - begun
    return tally
