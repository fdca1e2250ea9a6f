"""`python -m gpt2ckpt.train [overrides]`: train a GPT-2, or resume a run."""

from gpt2ckpt.signals.early import exit_code, handle_signals_early

if __name__ == "__main__":
    handle_signals_early()  # before the imports: they take seconds

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from gpt2ckpt import console
from gpt2ckpt.application import (
    CommandLine,
    ask_hydra,
    parse_command_line,
    run_hydra,
    switch_on_plugins,
)
from gpt2ckpt.config.compose import Composed, compose_config, parse_overrides, quoted, sets, spelled
from gpt2ckpt.config.replay import composable, task_overrides
from gpt2ckpt.config.schema import TrainConfig
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.exits import reported_errors
from gpt2ckpt.parallel.process_group import DistributedGroup, ProcessGroup
from gpt2ckpt.parallel.rank_exit import exit_without_teardown, open_process_group
from gpt2ckpt.parallel.ranks import read_ranks
from gpt2ckpt.runs.layout import CHECKPOINTS, hydra_record
from gpt2ckpt.runs.resume import Scope
from gpt2ckpt.runs.start import Start, find_start
from gpt2ckpt.runs.take_directory import complete_interrupted_save, take_directory
from gpt2ckpt.sweeps.launch import run_sweep
from gpt2ckpt.training.disk_check import check_free_space
from gpt2ckpt.training.validate_run import ValidatedRun, finished_notice, validate_run

if TYPE_CHECKING:
    from gpt2ckpt.training.session import Outcome

log = logging.getLogger(__name__)


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
            sys.exit(_single(_line_of_attempt(line, group), group))


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


def _single(line: CommandLine, group: ProcessGroup) -> int:
    """Train one run and return the exit code. All checks come before a directory is created."""
    composed = _compose_launch(line)
    wanted = Path(composed.hydra.run.dir)
    if composed.hydra.job.chdir:
        raise ConfigError("hydra.job.chdir=true would change relative paths: leave it out")
    is_given = any(sets(override, "hydra.run.dir") for override in line.overrides)
    scope = Scope(wanted.parent, wanted if is_given else None, _name_given(line, composed))
    start = find_start(
        values=composed.values,
        overrides=line.overrides,
        scope=scope,
        compose=lambda overrides: _compose(line, overrides).values,
        locks=not composed.values["dry_run"],
    )
    if group.directory_of_first_attempt() and start.directory is None:
        start = replace(start, restarts_run=True)  # the first attempt did not save
    with start.held():
        validated = validate_run(start)
        if notice := finished_notice(start, validated):
            finished = [] if composed.values["dry_run"] else complete_interrupted_save(start)
            print("\n".join([*finished, notice]))
            return 0
        if composed.values["dry_run"]:
            from gpt2ckpt.training.start_report import preview  # imports torch

            print("\n".join(preview(start, validated, group, wanted, is_given=is_given)))
            return 0
        return _train(line, start, validated, group, wanted, is_given=is_given)


def _train(
    line: CommandLine,
    start: Start,
    validated: ValidatedRun,
    group: ProcessGroup,
    wanted: Path,
    *,
    is_given: bool,
) -> int:
    """Lock the run directory and train in it under Hydra; return the exit code."""
    from gpt2ckpt.training.agreement import agree  # imports torch
    from gpt2ckpt.training.hardware import hardware_of
    from gpt2ckpt.training.session import train_claimed

    hardware = hardware_of(start, validated, group)
    check_free_space(start, validated.config, start.directory or wanted)
    agree(start, validated, hardware, group)
    line = _with_recorded_overrides(line, start)
    if not is_given:
        wanted = Path(_compose(line, line.overrides).hydra.run.dir)
    claim = take_directory(start, wanted, is_given=is_given)
    outcomes: list[Outcome | Exception] = []

    def task(_: DictConfig) -> None:
        try:
            outcomes.append(train_claimed(claim, start, validated, hardware, group))
        except Exception as error:
            outcomes.append(error)  # Hydra would print it, too

    console.install()  # from here on no output blocks
    directory, record = quoted(str(claim.directory)), hydra_record(claim.directory)
    run_hydra(line, task, [f"hydra.run.dir={directory}", f"hydra.output_subdir={record}"])
    if isinstance(outcomes[0], Exception):
        raise outcomes[0]
    stopped = outcomes[0].stopped
    return exit_code(stopped) if stopped else 0


def _compose(line: CommandLine, overrides: list[str]) -> Composed:
    return compose_config(line.config_name, overrides, line.config_dir)


def _compose_launch(line: CommandLine) -> Composed:
    """Return the config of the command line; if it does not compose, that of its launch overrides.

    A resume may set a key that only the groups of its run have, such as optimizer.momentum.
    """
    try:
        return _compose(line, line.overrides)
    except ConfigError:
        composed = _compose(line, _launch_overrides(line))
        if composed.values["resume"] is None:
            raise
        return composed


def _name_given(line: CommandLine, composed: Composed) -> str | None:
    """Return the run's name if the user gave one, as an override or in a config file."""
    typed = [o.value() for o in parse_overrides(line.overrides) if o.key_or_group == "name"]
    name = str(typed[-1] if typed else composed.values["name"])
    return name if typed or name != TrainConfig.name else None


def _with_recorded_overrides(line: CommandLine, start: Start) -> CommandLine:
    """Return the command line with all overrides of the resumed run, for Hydra to record.

    Overrides that no longer compose are left out: the frozen config has their values.
    """
    if start.found is None:
        return line
    launch = _launch_overrides(line)
    kept = composable(start.overrides, lambda some: _compose(line, [*some, *launch]).values)
    return replace(line, overrides=[*kept, *launch])


def _launch_overrides(line: CommandLine) -> list[str]:
    """Return Hydra's own overrides, resume, fork and dry_run."""
    return [override for override in line.overrides if not task_overrides([override])]


if __name__ == "__main__":
    main()
