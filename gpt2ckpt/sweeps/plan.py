"""Composes and checks the jobs of a sweep before anything is written."""

from dataclasses import dataclass, replace
from pathlib import Path

from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

from gpt2ckpt.application import CommandLine
from gpt2ckpt.config.compose import (
    Composed,
    compose_config,
    group_options,
    parse_overrides,
    sets,
    sweep_jobs,
)
from gpt2ckpt.config.registry import build_typed
from gpt2ckpt.config.replay import Values, freeze
from gpt2ckpt.errors import ConfigError
from gpt2ckpt.runs.resume import AUTO, SELECTORS
from gpt2ckpt.sweeps import folder
from gpt2ckpt.sweeps.matching import Job, RecordedJob, find_own, swept_keys
from gpt2ckpt.training.validate_run import check_settings

BASIC = ("BasicSweeper", "BasicLauncher")
OPTUNA = "OptunaSweeper"


@dataclass(frozen=True)
class PlannedJob:
    """A job that is known before the sweep starts; `own` is the recorded job that it resumes."""

    overrides: list[str]  # Hydra's own included
    values: Values
    job: Job
    own: RecordedJob | None


@dataclass(frozen=True)
class SweepPlan:
    """A checked sweep; `jobs` is empty if the sweeper chooses the jobs during the sweep."""

    line: CommandLine  # with glob() and shuffle() replaced by their values
    typed: list[str]  # the overrides as typed
    jobs: list[PlannedJob]
    swept: list[str]
    values: Values  # of the first job
    hydra: DictConfig

    @property
    def wanted(self) -> Path:
        """Return the folder that the command sets, or the default."""
        return Path(self.hydra.sweep.dir)

    @property
    def is_given(self) -> bool:
        return given_dir(self.line)

    @property
    def is_continued(self) -> bool:
        """Return whether the sweep resumes jobs in the folder."""
        return self.is_given and self.values["resume"] is not None

    @property
    def is_optuna(self) -> bool:
        return target(self.hydra.sweeper) == OPTUNA

    @property
    def is_parallel(self) -> bool:
        """Return whether jobs train in worker processes."""
        return target(self.hydra.launcher) not in BASIC


def plan_sweep(line: CommandLine) -> SweepPlan:
    """Compose and check every known job, without writing a file. Raises ConfigError."""
    typed = line.overrides
    parsed = parse_overrides(typed, line.config_dir)
    line = replace(line, overrides=[_written_out(override) for override in parsed])
    first = _compose(line, [_one_value(override) for override in parsed])
    if first.hydra.job.chdir:
        raise ConfigError("hydra.job.chdir=true would change relative paths: leave it out")
    _check_resume(line, first.values)
    params = OmegaConf.to_container(first.hydra.sweeper.get("params") or OmegaConf.create({}))
    assert isinstance(params, dict)
    overrides = [*(f"{key!s}={value}" for key, value in params.items()), *line.overrides]
    swept = swept_keys(overrides)
    if target(first.hydra.sweeper) not in BASIC:
        last = _compose(
            line, [_one_value(o, last=True) for o in parse_overrides(overrides, line.config_dir)]
        )
        for composed in (first, last):
            check_settings(build_typed("train", freeze(composed.values)))
        return SweepPlan(line, typed, [], swept, first.values, first.hydra)
    jobs = _basic_jobs(line, overrides, swept)
    return SweepPlan(line, typed, jobs, swept, jobs[0].values, first.hydra)


def given_dir(line: CommandLine) -> bool:
    """Return whether the command line sets the folder of the sweep (hydra.sweep.dir)."""
    return any(sets(override, "hydra.sweep.dir") for override in line.overrides)


def target(config: DictConfig) -> str:
    """Return the name of the class that is the `_target_` of a node of Hydra's config."""
    return str(config.get("_target_", "")).rpartition(".")[2]


def _basic_jobs(line: CommandLine, sweep: list[str], swept: list[str]) -> list[PlannedJob]:
    jobs = []
    recorded: list[RecordedJob] | None = None
    for overrides in sweep_jobs(sweep, line.config_dir):
        composed = _compose(line, overrides)
        check_settings(build_typed("train", freeze(composed.values)))
        job, own = Job.of(overrides, composed.values, swept), None
        if composed.values["resume"] is not None and given_dir(line):
            if recorded is None:
                recorded = folder.read_jobs(Path(composed.hydra.sweep.dir))
            own = find_own(job, recorded)
        jobs.append(PlannedJob(overrides, composed.values, job, own))
    if not jobs:
        raise ConfigError(
            "the sweep has no jobs: set a key to several values, for example seed=1,2"
        )
    return jobs


def _check_resume(line: CommandLine, values: Values) -> None:
    what = values["resume"]
    if what is None or values["fork"]:
        return
    if what not in SELECTORS:
        raise ConfigError(
            f"resume={what} would resume the same run in every job: add fork=true to start new "
            f"runs from it, or resume a sweep with hydra.sweep.dir=DIR +resume={AUTO}"
        )
    if not given_dir(line):
        raise ConfigError(
            f"resume={what} needs the folder of a sweep: add hydra.sweep.dir=DIR, or leave resume "
            "out to start a new sweep"
        )


def _compose(line: CommandLine, overrides: list[str]) -> Composed:
    return compose_config(line.config_name, overrides, line.config_dir)


def _written_out(override: Override) -> str:
    """Return the override with glob() and shuffle() replaced by their values.

    Hydra evaluates them again when it runs the sweep, possibly with a different result.
    """
    if not (isinstance(override.value(), Glob) or getattr(override.value(), "shuffle", False)):
        return str(override.input_line)
    values = _values(override)
    return f"{override.get_key_element()}={','.join(values)}"


def _one_value(override: Override, *, last: bool = False) -> str:
    """Return an override with the first (or last) of its swept values."""
    if not override.is_sweep_override():
        return str(override.input_line)
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        return f"{key}={value.end if last else value.start}"
    return f"{key}={_values(override)[-1 if last else 0]}"


def _values(override: Override) -> list[str]:
    """Return the swept values in Hydra's syntax. Raises ConfigError if there are none."""
    values = list(override.sweep_string_iterator())
    if values:
        return values
    group, options = override.key_or_group, group_options(override.key_or_group)
    if not isinstance(override.value(), Glob):
        raise ConfigError(
            f"{override.input_line} has no values: write values, for example {group}=1,2"
        )
    if not options:
        raise ConfigError(
            f"{override.input_line}: glob() needs a group, and {group} is not a group. "
            f"Write the values, for example {group}=1,2"
        )
    raise ConfigError(
        f"{override.input_line} matches none of the options of {group}: {', '.join(options)}"
    )
