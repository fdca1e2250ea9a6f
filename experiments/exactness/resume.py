"""A resume in this process: everything that the command does between Hydra and its exit code.

Hydra itself takes longer than these trainings, and composes a config that a resume without
overrides does not look at.
"""

from pathlib import Path

from gpt2ckpt.config.replay import Values
from gpt2ckpt.parallel.group import Alone
from gpt2ckpt.runs.resume import Scope
from gpt2ckpt.runs.start import find_start, take_directory
from gpt2ckpt.training.hardware import hardware_of
from gpt2ckpt.training.preparation import prepare
from gpt2ckpt.training.session import Session


def resume(file: Path, directory: Path) -> None:
    """Go on from `file` in its run directory, to the end."""
    values = {"resume": str(file), "fork": None}
    start = find_start(values, [], Scope(directory.parent, directory), _not_needed, locks=True)
    for line in start.notices():
        print(line)
    prepared, alone = prepare(start), Alone()
    hardware = hardware_of(start, prepared, alone)
    claim = take_directory(start, directory, is_given=True)
    with claim.lock:
        Session(claim.directory, start, prepared, hardware, alone).run()


def _not_needed(overrides: list[str]) -> Values:
    raise AssertionError("nothing is composed where there are no overrides")
