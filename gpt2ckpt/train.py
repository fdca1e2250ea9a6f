"""Train a GPT-2, or resume a run: `python -m gpt2ckpt.train [overrides]`.

In Python, `gpt2ckpt.train(overrides)` calls this module; see gpt2ckpt.api.train.
"""

from gpt2ckpt.signals.early import exit_code, handle_signals_early

if __name__ == "__main__":
    handle_signals_early()  # before the imports: they take seconds

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from gpt2ckpt import console
from gpt2ckpt.application import (
    CommandLine,
    ask_hydra,
    parse_command_line,
    switch_on_plugins,
)
from gpt2ckpt.config.compose import sets, spelled
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.exits import reported_errors
from gpt2ckpt.parallel.process_group import DistributedGroup, ProcessGroup
from gpt2ckpt.parallel.rank_exit import exit_without_teardown, open_process_group
from gpt2ckpt.parallel.ranks import read_ranks
from gpt2ckpt.runs.layout import CHECKPOINTS
from gpt2ckpt.single_run import CommandProcess, train_run
from gpt2ckpt.sweeps.launch import run_sweep

if TYPE_CHECKING:
    from gpt2ckpt.api import Run


class _TrainModule(ModuleType):
    """This module, callable: as a submodule, it replaces a function `gpt2ckpt.train`."""

    def __call__(self, overrides: Sequence[str]) -> "Run":
        """Train a run and return it: see gpt2ckpt.api.train."""
        from gpt2ckpt.api import train

        return train(overrides)


sys.modules[__name__].__class__ = _TrainModule


def main() -> None:
    """Run the command; an error ends the process."""
    is_rank = read_ranks(os.environ) is not None
    with exit_without_teardown(), reported_errors(tidies=is_rank), open_process_group() as group:
        if isinstance(group, DistributedGroup) and not group.is_first:
            from gpt2ckpt.training.agreement import follow

            console.install()
            sys.exit(follow(group, lambda: switch_on_plugins("train")))
        line = parse_command_line("train")
        if line.asks_hydra:
            ask_hydra(line)
        elif line.multirun:
            if isinstance(group, DistributedGroup):
                raise ConfigError("a sweep trains on one rank: start it without torchrun")
            sys.exit(run_sweep(line))
        else:
            result = train_run(_line_of_attempt(line, group), group, CommandProcess())
            if result.message:
                print(result.message)
            sys.exit(exit_code(result.stopped) if result.stopped else 0)


def _line_of_attempt(line: CommandLine, group: ProcessGroup) -> CommandLine:
    """Return the command line; after a launcher restarted the group, one that resumes its run.

    The restarted group resumes from the newest state in the directory of the first attempt. As long
    as the directory holds none, the group starts as the first attempt did.
    """
    directory = group.directory_of_first_attempt()
    if directory is None:
        return line
    has_state = any((Path(directory) / CHECKPOINTS).glob("**/*.pt"))
    dropped = ("hydra.run.dir", *(("resume", "fork") if has_state else ()))
    kept = [override for override in line.overrides if not sets(override, *dropped)]
    resume = ["resume=auto"] if has_state else []
    return replace(line, overrides=[*kept, *resume, f"hydra.run.dir={spelled(directory)}"])


if __name__ == "__main__":
    main()
