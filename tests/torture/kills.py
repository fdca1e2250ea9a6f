"""Kills real runs at random moments: no reported save is lost, and the result is the same.

An episode is one run that is killed several times, restarted each time by the same command
with `+resume=auto`, and finally left to finish. After each kill every file with a role must be
valid, and a resume must start from a state at least as new as the newest reported save. At the end
weights, optimizer, random generators, position and all losses must equal, bitwise, those of an
undisturbed run.
"""

import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2ckpt.runs.resume import Scope
from gpt2ckpt.runs.start import find_start
from tests.torture import tiny
from tests.torture.tally import Tally
from tests.torture.tiny import Child

VARIANTS = (
    [],
    ["checkpoint.async_save=false"],
    ["optimizer=muon", "checkpoint.keep_rolling=1"],
    ["checkpoint.save_every=1", "trainer.eval_every=3"],
)
LEAST, MOST = 3, 8  # kills in a life
WAYS = {tiny.fork: 50, tiny.fork_main: 5, tiny.command: 1}  # how often, of 56


@dataclass(frozen=True)
class Reference:
    """The undisturbed training and its duration."""

    overrides: list[str]
    run: Path
    state: dict[str, Any]
    losses: list[tuple[int, float]]
    seconds: float


def torture(folder: Path, kills: int, seed: int) -> Tally:
    """Train runs until at least `kills` kills have hit a running process."""
    tally, begun = Tally("SIGKILL"), time.monotonic()
    tiny.make_data(folder)
    references = [_reference(folder, number) for number in range(len(VARIANTS))]
    while tally.done < kills:
        run = folder / f"life_{seed}"
        try:
            _live(run, references, random.Random(seed), tally)
        except Exception as error:
            tally.fail(seed, f"{type(error).__name__}: {error}")
        else:
            shutil.rmtree(run, ignore_errors=True)
        seed += 1
    tally.seconds = time.monotonic() - begun
    return tally


def _reference(folder: Path, number: int) -> Reference:
    overrides, run = [*tiny.WORDS, *VARIANTS[number]], folder / f"undisturbed_{number}"
    begun = time.monotonic()
    child = tiny.fork(overrides, run, run.with_suffix(".out"))
    if code := child.wait():
        raise RuntimeError(f"the undisturbed training ended with {code}:\n{child.text()}")
    seconds = time.monotonic() - begun
    values = {"resume": "auto", "fork": False}
    find_start(values, overrides, Scope(folder, run), tiny.compose, locks=False)  # all composed
    return Reference(overrides, run, tiny.final_state(run), tiny.losses(run), seconds)


def _live(run: Path, references: list[Reference], dice: random.Random, tally: Tally) -> None:
    """Train one run with kills. Raises AssertionError if a guarantee is violated."""
    reference = dice.choice(references)
    kills, safe = dice.randint(LEAST, MOST), 0
    for number in range(kills):
        begin = dice.choices(*zip(*WAYS.items(), strict=True))[0]
        child = begin(reference.overrides, run, run.parent / f"{run.name}.{number}.out")
        was_alive = _kill_at_random(child, run, reference.seconds, dice)
        safe = max(safe, tiny.acknowledged(child.text()))
        tally.done += was_alive
        tally.counts["killed" if was_alive else "finished before the kill"] += 1
        _check(run, safe)
        if not was_alive:
            break
    child = tiny.fork(reference.overrides, run, run.parent / f"{run.name}.last.out")
    code, output = child.wait(), child.text()
    assert code == 0, f"the last start ended with {code}: {output[-1500:]}"
    assert "differs" not in output, output[-1500:]
    where = tiny.differing(tiny.final_state(run), reference.state)
    assert where is None, f"{where} differs from the undisturbed training's"
    assert tiny.best_step(run) == tiny.best_step(reference.run), "best_model.pt is another step's"
    assert tiny.losses(run) == reference.losses, "the losses differ from the undisturbed training's"
    tally.counts["lives that ended bitwise the same"] += 1
    for output_file in run.parent.glob(f"{run.name}.*.out"):
        output_file.unlink()


def _check(run: Path, safe: int) -> None:
    damaged = tiny.damaged_files(run)
    assert not damaged, f"after a kill {damaged}"
    newest = tiny.newest_valid(run)
    assert newest >= safe, f"step {safe} was reported as saved, but the newest state is {newest}"


def _kill_at_random(child: Child, run: Path, usual: float, dice: random.Random) -> bool:
    """Kill the child at a random moment; return whether it was still running."""
    end = time.monotonic() + tiny.PATIENCE
    match dice.randrange(3):
        case 0:  # any moment, the start included
            moment = time.monotonic() + dice.random() * 1.1 * usual

            def is_time() -> bool:
                return time.monotonic() > moment
        case 1:  # some steps on, and a little later
            target = tiny.steps_done(run) + dice.randint(1, 12)

            def is_time() -> bool:
                return tiny.steps_done(run) >= target
        case _:  # in the middle of a save
            left = dice.randint(1, 6)
            seen: set[str] = set()

            def is_time() -> bool:
                seen.update(path.name for path in (run / "checkpoints").glob(".*.tmp"))
                return len(seen) >= left

    while not is_time():
        if child.ended() is not None:
            return False
        assert time.monotonic() < end, f"it hangs:\n{child.text()[-1500:]}"
        time.sleep(0.0005)
    time.sleep(dice.random() * 0.004)
    if child.ended() is not None:
        return False
    child.kill()
    return True
