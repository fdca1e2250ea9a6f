"""`python -m gpt2ckpt.train [overrides]`: train a GPT-2, or go on with a run."""

from gpt2ckpt.standby import exit_code, stand_by

if __name__ == "__main__":
    stand_by()  # before the imports: they take seconds

import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from gpt2ckpt.application import CommandLine, parse_command_line, run_hydra
from gpt2ckpt.config.compose import Composed, compose_config, quoted, sweep_jobs
from gpt2ckpt.config.registry import build_typed
from gpt2ckpt.config.replay import freeze, task_overrides
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.exits import reported_errors
from gpt2ckpt.parallel.group import Alone, Group, Team, joined_ranks, left_at_once
from gpt2ckpt.parallel.ranks import read_ranks
from gpt2ckpt.runs.claim import Claim, claim_sweep, protection_notice
from gpt2ckpt.runs.start import (
    Start,
    find_start,
    hydra_record,
    take_directory,
    words_after_restart,
)
from gpt2ckpt.training.preparation import Prepared, check_settings, finished_notice, prepare
from gpt2ckpt.training.room import check_room

if TYPE_CHECKING:
    from gpt2ckpt.training.hardware import Hardware
    from gpt2ckpt.training.session import Outcome

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point of the command; never returns normally on an error."""
    is_rank = read_ranks(os.environ) is not None
    with left_at_once(), reported_errors(tidies=is_rank), joined_ranks() as team:
        if isinstance(team, Group) and not team.is_first:
            from gpt2ckpt.training.agreement import follow

            sys.exit(follow(team))
        line = parse_command_line("train")
        if line.asks_hydra:
            run_hydra(line, lambda config: None)
        elif line.multirun:
            if isinstance(team, Group):
                raise ConfigError("a sweep trains on one rank: start it without torchrun")
            _sweep(line)
        else:
            sys.exit(_single(_line_of_attempt(line, team), team))


def _line_of_attempt(line: CommandLine, team: Team) -> CommandLine:
    """The line itself; where a launcher starts the group again, that which goes on with its run."""
    directory = team.directory_of_first_attempt()
    if directory is None:
        return line
    return replace(line, overrides=words_after_restart(line.overrides, Path(directory)))


def _single(line: CommandLine, team: Team) -> int:
    """Train one run; everything that can be refused is refused before Hydra makes a directory."""
    composed = _compose_launch(line)
    wanted = Path(composed.hydra.run.dir)
    if composed.hydra.job.chdir:
        raise ConfigError("hydra.job.chdir=true would move the relative paths: leave it out")
    is_given = any(word.lstrip("+").startswith("hydra.run.dir=") for word in line.overrides)
    start = find_start(
        *(composed.values, line.overrides, wanted if is_given else None, wanted.parent),
        lambda overrides: _compose(line, overrides).values,
    )
    if team.directory_of_first_attempt() and start.directory is None:
        start = replace(start, begins_again=True)  # that attempt never came to a save
    prepared = prepare(start)
    if notice := finished_notice(start, prepared):
        print(notice)
        return 0
    from gpt2ckpt.training.agreement import agree, hardware_of  # imports torch

    hardware = hardware_of(start, prepared, team)
    check_room(start, prepared.config, start.directory or wanted)
    agree(start, prepared, hardware, team)
    line = _with_recorded_overrides(line, start)
    if not is_given:
        wanted = Path(_compose(line, line.overrides).hydra.run.dir)
    claim = take_directory(start, wanted, is_given=is_given)
    outcomes: list[Outcome | Exception] = []

    def task(_: DictConfig) -> None:
        try:
            outcomes.append(_train(start, prepared, hardware, claim, team))
        except Exception as error:
            outcomes.append(error)  # Hydra would print about it, too

    directory, record = quoted(str(claim.directory)), hydra_record(claim.directory)
    run_hydra(line, task, [f"hydra.run.dir={directory}", f"hydra.output_subdir={record}"])
    if isinstance(outcomes[0], Exception):
        raise outcomes[0]
    stopped = outcomes[0].stopped
    return exit_code(stopped) if stopped else 0


def _sweep(line: CommandLine) -> None:
    """Train every job of a sweep; all of their configs are checked before the first begins."""
    composed = None
    for overrides in sweep_jobs(line.overrides):
        composed = _compose(line, overrides)
        check_settings(build_typed("train", freeze(composed.values)))
    if composed is None:
        raise ConfigError("this sweep has no jobs: give a key several values, as in seed=1,2")
    wanted, resumed = Path(composed.hydra.sweep.dir), composed.values["resume"] is not None
    is_given = any(word.lstrip("+").startswith("hydra.sweep.dir=") for word in line.overrides)
    directory = wanted if is_given and resumed else claim_sweep(wanted, is_given=is_given)
    if is_given and directory != wanted:
        print(protection_notice(wanted, directory, "hydra.sweep.dir"))
    records = [hydra_record(job) for job in (directory.iterdir() if directory.is_dir() else ())]
    more = [f"hydra.sweep.dir={quoted(str(directory))}"]
    run_hydra(
        *(line, lambda config: _job(line, config)),
        [*more, f"hydra.output_subdir={max(records, key=_age, default='.hydra')}"],
    )


def _age(record: str) -> tuple[int, str]:
    return len(record), record  # resume_10 comes after resume_9


def _job(line: CommandLine, config: DictConfig) -> float | None:
    """One job of a sweep, in the directory that Hydra made for it; its best validation loss."""
    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir)
    values: Any = OmegaConf.to_container(config, resolve=True)
    overrides = list(hydra.overrides.task)
    start = find_start(
        *(values, overrides, directory, directory.parent),
        lambda more: _compose(line, more).values,
    )
    prepared = prepare(start)
    if notice := finished_notice(start, prepared):
        log.info("%s", notice)
        return start.state["best_val_loss"] if start.state else None
    from gpt2ckpt.training.agreement import hardware_of  # imports torch

    hardware = hardware_of(start, prepared, Alone())
    check_room(start, prepared.config, directory)
    claim = take_directory(start, directory, is_given=True)
    outcome = _train(start, prepared, hardware, claim, Alone())
    if outcome.stopped:
        sys.exit(exit_code(outcome.stopped))  # ends the sweep; an exception only ends this job
    return outcome.best_val_loss


def _compose(line: CommandLine, overrides: list[str]) -> Composed:
    return compose_config(line.config_name, overrides, line.config_dir)


def _compose_launch(line: CommandLine) -> Composed:
    """The config of the command line, or if it makes none alone, the words that say what to resume.

    A resume may name a key that only the groups of its run have: optimizer.momentum, say.
    """
    try:
        return _compose(line, line.overrides)
    except ConfigError:
        composed = _compose(line, _launch_words(line))
        if composed.values["resume"] is None:
            raise
        return composed


def _with_recorded_overrides(line: CommandLine, start: Start) -> CommandLine:
    """The line with all overrides of the run that goes on, for Hydra to record.

    Without any where conf/ no longer knows them: the frozen config has what is needed.
    """
    if start.found is None:
        return line
    complete = replace(line, overrides=[*start.overrides, *_launch_words(line)])
    try:
        _compose(complete, complete.overrides)
    except ConfigError:
        return replace(line, overrides=_launch_words(line))
    return complete


def _launch_words(line: CommandLine) -> list[str]:
    return [word for word in line.overrides if not task_overrides([word])]


def _train(
    start: Start, prepared: Prepared, hardware: "Hardware", claim: Claim, team: Team
) -> "Outcome":
    """Train in the claimed directory."""
    from gpt2ckpt.training.session import Session

    with claim.lock:
        for line in [claim.notice, *start.notices()]:
            if line:
                log.info("%s", line)
        team.announce(str(claim.directory))
        return Session(claim.directory, start, prepared, hardware, team).run()


if __name__ == "__main__":
    main()
