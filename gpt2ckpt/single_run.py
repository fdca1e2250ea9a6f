"""Trains one run from its overrides, for the command `train` and for `gpt2ckpt.train`."""

import logging
import signal
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from gpt2ckpt import console
from gpt2ckpt.application import CommandLine
from gpt2ckpt.config.compose import (
    Composed,
    compose_config,
    create_hydra,
    parse_overrides,
    quoted,
    sets,
)
from gpt2ckpt.config.replay import Values, composable, task_overrides
from gpt2ckpt.config.schema import TrainConfig
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.parallel.process_group import ProcessGroup
from gpt2ckpt.runs.layout import hydra_record
from gpt2ckpt.runs.resume import Scope
from gpt2ckpt.runs.start import Start, find_start
from gpt2ckpt.runs.take_directory import complete_interrupted_save, take_directory
from gpt2ckpt.signals.host import HostSignals, StoppedUnsaved
from gpt2ckpt.training.disk_check import check_free_space
from gpt2ckpt.training.validate_run import ValidatedRun, finished_notice, validate_run

if TYPE_CHECKING:
    from gpt2ckpt.training.session import Outcome

log = logging.getLogger(__name__)


class CommandProcess:
    """The process of a command, whose output, logging and settings of PyTorch are ours.

    Attributes:
        signals: the signal handlers of a training; None for those of a command.
        configures_logging: whether Hydra configures the root logger.
    """

    signals: HostSignals | None = None
    configures_logging = True

    def prepare_output(self) -> None:
        """Prepare the output for a training; from here on no output blocks."""
        console.install()

    def torch_settings(self) -> AbstractContextManager[Any]:
        """Return the context in which the settings of PyTorch are those of a training."""
        return nullcontext()

    def logging(self) -> AbstractContextManager[Any]:
        """Return the context in which a training logs, entered in Hydra's job."""
        return nullcontext()


@dataclass(frozen=True)
class RunResult:
    """The end of `train_run`.

    Attributes:
        directory: the run directory; in a dry run the one that would be used.
        config: the frozen config.
        stopped: the signal that stopped the training.
        message: what to print: the preview of a dry run, or that the run was finished already.
    """

    directory: Path
    config: Values
    stopped: signal.Signals | None = None
    message: str = ""


def train_run(line: CommandLine, group: ProcessGroup, process: CommandProcess) -> RunResult:
    """Train one run to its end or until a signal.

    All checks come before a directory is created. Raises the error that ends the training.

    Args:
        line: the parsed overrides and flags.
        group: the ranks that train together; this is the first one.
        process: what the training may use of this process.
    """
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
        directory = start.directory or wanted
        if notice := finished_notice(start, validated):
            finished = [] if composed.values["dry_run"] else complete_interrupted_save(start)
            message = "\n".join([*finished, notice])
            return RunResult(directory, start.frozen, message=message)
        with process.torch_settings():
            if composed.values["dry_run"]:
                from gpt2ckpt.training.start_report import preview  # imports torch

                lines = preview(start, validated, group, wanted, is_given=is_given)
                return RunResult(directory, start.frozen, message="\n".join(lines))
            return _train(
                line=line,
                start=start,
                validated=validated,
                group=group,
                process=process,
                wanted=wanted,
                is_given=is_given,
            )


def _train(
    *,
    line: CommandLine,
    start: Start,
    validated: ValidatedRun,
    group: ProcessGroup,
    process: CommandProcess,
    wanted: Path,
    is_given: bool,
) -> RunResult:
    """Lock the run directory and train in it under Hydra."""
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
    outcomes: list[Outcome | BaseException] = []

    def task(_: DictConfig) -> None:
        with process.logging():
            try:
                outcomes.append(
                    train_claimed(
                        claim=claim,
                        start=start,
                        validated=validated,
                        hardware=hardware,
                        group=group,
                        signals=process.signals,
                    )
                )
            except (Exception, StoppedUnsaved) as error:
                outcomes.append(error)  # Hydra would print it, too
                if isinstance(error, StoppedUnsaved):
                    log.warning("%s", error)

    process.prepare_output()
    record = hydra_record(claim.directory)
    more = [f"hydra.run.dir={quoted(str(claim.directory))}", f"hydra.output_subdir={record}"]
    create_hydra(line.config_dir).run(
        config_name=line.config_name,
        task_function=task,
        overrides=[*line.overrides, *more, "hydra.mode=RUN"],
        with_log_configuration=process.configures_logging,
    )
    [outcome] = outcomes
    if isinstance(outcome, StoppedUnsaved):
        return RunResult(claim.directory, start.frozen, outcome.received)
    if isinstance(outcome, BaseException):
        raise outcome
    return RunResult(claim.directory, start.frozen, outcome.stopped)


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
