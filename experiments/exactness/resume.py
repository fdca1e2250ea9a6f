"""Resumes in this process: everything that the command does after Hydra.

Hydra takes longer than these training runs, and composes a config that a resume without overrides
does not use.
"""

from pathlib import Path

from gpt2ckpt.config.replay import Values
from gpt2ckpt.parallel.process_group import SingleProcess
from gpt2ckpt.runs.resume import Scope
from gpt2ckpt.runs.start import find_start
from gpt2ckpt.runs.take_directory import take_directory
from gpt2ckpt.training.hardware import hardware_of
from gpt2ckpt.training.session import Session
from gpt2ckpt.training.validate_run import validate_run


def resume(file: Path, directory: Path) -> None:
    """Resume from `file` in its run directory and train to the end."""
    values = {"resume": str(file), "fork": None}
    start = find_start(values, [], Scope(directory.parent, directory), _not_needed, locks=True)
    for line in start.notices():
        print(line)
    validated, alone = validate_run(start), SingleProcess()
    hardware = hardware_of(start, validated, alone)
    claim = take_directory(start, directory, is_given=True)
    with claim.lock:
        Session(claim.directory, start, validated, hardware, alone).run()


def _not_needed(overrides: list[str]) -> Values:
    raise AssertionError("nothing is composed where there are no overrides")
