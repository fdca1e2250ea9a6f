"""Runs one job of a sweep; Hydra's launcher calls the job in the main process or in a worker.

This module writes the job's log and Hydra's record of the job. If Hydra wrote them, they could
replace those of a finished job with the same number.
"""

import copy
import logging
import os
import signal
import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gpt2ckpt import console
from gpt2ckpt.application import CommandLine
from gpt2ckpt.config import plugins
from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.errors import InputError, LockedError, UserError
from gpt2ckpt.exits import own_process
from gpt2ckpt.parallel.process_group import SingleProcess
from gpt2ckpt.runs.claim import Claim
from gpt2ckpt.runs.layout import JOBS, RECORD, hydra_record
from gpt2ckpt.runs.resume import AUTO, Scope
from gpt2ckpt.runs.start import Start, find_start
from gpt2ckpt.runs.take_directory import complete_interrupted_save, take_directory
from gpt2ckpt.signals.early import Interrupted, exit_code
from gpt2ckpt.signals.sweeps import WorkerSignals, worker_signals
from gpt2ckpt.sweeps import folder, journal
from gpt2ckpt.sweeps.journal import JournalEntry, Status
from gpt2ckpt.sweeps.matching import Job, RecordedJob, find_own
from gpt2ckpt.training.disk_check import check_free_space
from gpt2ckpt.training.validate_run import ValidatedRun, finished_notice, validate_run

if TYPE_CHECKING:
    from gpt2ckpt.training.session import Outcome

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NoMetric:
    """The result of a job without a validation loss."""

    reason: str
    stopped: int = 0  # exit code if the sweep received a signal

    def __float__(self) -> float:
        """Raise SystemExit after a signal, else ValueError: Optuna then records a failed trial."""
        if self.stopped:
            raise SystemExit(self.stopped)
        raise ValueError(self.reason)


@dataclass(frozen=True)
class SweepJob:
    """The function that Hydra calls for every job; it is pickled for workers.

    Attributes:
        line: the command line.
        sweep: the folder of the sweep.
        launch: the name of this launch in the journal.
        swept: the keys that differ between jobs.
        hydra: the user's hydra.sweep.subdir and hydra.job_logging, which are overridden for Hydra.
        main_pid: the process id of the main process.
        wants_trace: whether the stack trace of an error is printed.
    """

    line: CommandLine
    sweep: Path
    launch: str
    swept: list[str]
    hydra: dict[str, Any]
    main_pid: int
    wants_trace: bool

    def __call__(self, config: DictConfig) -> "float | NoMetric":
        """Train, resume or skip the job; return its best validation loss."""
        console.install()  # no job waits for a reader of the console
        own_process()
        signals, hydra = self._signals(), HydraConfig.get()
        values: Any = OmegaConf.to_container(config, resolve=True)
        job = Job.of(list(hydra.overrides.task), values, self.swept)
        entry = JournalEntry(self.launch, int(hydra.job.num), Status.NOT_STARTED, label=job.label)
        places: list[Path] = []
        stopped = 0
        try:
            self._record(replace(entry, status=Status.STARTED))
            if signals:
                self._enter(signals)
            plugins.load(self.line.plugins)  # in a worker, which has unpickled their classes
            entry, received = self._run(job, values, config, entry, places)
            stopped = exit_code(received) if received else 0
            if signals and received:
                signals.received = received
        except Interrupted as stop:
            stopped = int(str(stop.code))
        except Exception as error:
            entry = self._failed(entry, error)
        finally:
            if signals:
                signals.in_job = False
        if places:
            entry = replace(entry, job=str(places[0].relative_to(self.sweep)))
        self._record(entry)
        _forget_compiled()
        return self._result(entry, stopped)

    def _run(
        self,
        job: Job,
        values: dict[str, Any],
        config: DictConfig,
        entry: JournalEntry,
        places: list[Path],
    ) -> tuple[JournalEntry, signal.Signals | None]:
        """Train in the directory of the job, and add this directory to `places`.

        Returns:
            The entry for the journal, and the signal that stopped the training, if any.
        """
        is_resumed = values["resume"] is not None
        own = find_own(job, folder.read_jobs(self.sweep)) if is_resumed else None
        places += [own.directory] if own else []
        overrides = list(HydraConfig.get().overrides.task)
        start = find_job_start(self.line, self.sweep, overrides, values, own, locks=True)
        with start.held():
            validated = validate_run(start)
            if finished_notice(start, validated):
                for line in complete_interrupted_save(start):
                    log.info("%s", line)
                best = start.state.best_val_loss if start.state else None
                return replace(entry, status=Status.WAS_FINISHED, best_val_loss=best), None
            outcome = self._train(start, validated, job, config, places)
        status = Status.INTERRUPTED if outcome.stopped else Status.FINISHED
        ended = replace(entry, status=status, best_val_loss=outcome.best_val_loss)
        return ended, outcome.stopped

    def _train(
        self,
        start: Start,
        validated: ValidatedRun,
        job: Job,
        config: DictConfig,
        places: list[Path],
    ) -> "Outcome":
        """Train in the directory in `places`, or in a new one, which is added to `places`."""
        from gpt2ckpt.training.hardware import hardware_of  # imports torch
        from gpt2ckpt.training.session import train_claimed

        hardware, is_new = hardware_of(start, validated, SingleProcess()), not places
        check_free_space(start, validated.config, self.sweep if is_new else places[0])
        if is_new:
            made = self._new_directory(job, config)
            places.append(made.directory)
            start = replace(start, lock=made.lock)
        [directory] = places
        with start.held():
            claim = take_directory(start, directory, is_given=True)
            launch = self._launch_config(config, directory)
            if not is_new:
                _write_record(directory / hydra_record(directory), config, launch)
            configure_log(launch.hydra.job_logging, launch.hydra.verbose)
            return train_claimed(
                claim=claim,
                start=start,
                validated=validated,
                hardware=hardware,
                group=SingleProcess(),
            )

    def _new_directory(self, job: Job, config: DictConfig) -> Claim:
        def name_of(number: int) -> str:
            launch = self._launch_config(config, self.sweep, number)
            return str(OmegaConf.select(launch, "hydra.sweep.subdir"))

        def fill(temporary: Path, final: Path) -> None:
            _write_record(temporary / RECORD, config, self._launch_config(config, final))

        with folder.locked(self.sweep):
            if config.resume is not None and find_own(job, folder.read_jobs(self.sweep)):
                raise LockedError("another process has just started this job: wait until it ends")
            try:
                number = int(HydraConfig.get().job.num)
                return folder.make_directory(self.sweep, number, name_of, fill)
            except OSError as error:
                raise InputError(
                    f"cannot create a directory in {self.sweep} ({error.strerror}): check its "
                    "permissions and free space"
                ) from error

    def _launch_config(
        self, config: DictConfig, directory: Path, number: int | None = None
    ) -> DictConfig:
        """Return `config` with the `hydra` node that Hydra would have added for `directory`."""
        launch = copy.deepcopy(config)
        with read_write(launch), open_dict(launch):
            launch.hydra = copy.deepcopy(HydraConfig.get())
            with read_write(launch.hydra), open_dict(launch.hydra):
                launch.hydra.sweep.dir = str(self.sweep)
                launch.hydra.sweep.subdir = (
                    self.hydra["subdir"]
                    if number is not None
                    else str(directory.relative_to(self.sweep))
                )
                launch.hydra.output_subdir = RECORD
                launch.hydra.job_logging = self.hydra["job_logging"]
                launch.hydra.runtime.output_dir = str(directory.absolute())
                if number is not None:
                    launch.hydra.job.num = number
                simple = launch.hydra.job_logging.get("formatters", {}).get("simple")
                if simple is not None and os.getpid() != self.main_pid:
                    simple.format = f"[{launch.hydra.sweep.subdir}] {simple.format}"
        return launch

    def _enter(self, signals: WorkerSignals) -> None:
        """Let signals end the job from here on; raise Interrupted if the sweep has been stopped.

        The main process records a stop before it looks for started jobs. A job records its start
        before it looks for a stop. So at least one of the two notices the other.
        """
        signals.in_job = True
        if signals.received or self._stop_requested():
            raise Interrupted(exit_code(signals.received or signal.SIGTERM))

    def _failed(self, entry: JournalEntry, error: Exception) -> JournalEntry:
        if self.wants_trace:
            traceback.print_exc()
        status = Status.LOCKED if isinstance(error, LockedError) else Status.FAILED
        known = isinstance(error, UserError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        return replace(entry, status=status, reason=reason)

    def _signals(self) -> WorkerSignals | None:
        return None if os.getpid() == self.main_pid else worker_signals()

    def _stop_requested(self) -> bool:
        return any(e.status is Status.STOP for e in journal.read(self.sweep, self.launch))

    def _record(self, entry: JournalEntry) -> None:
        try:
            journal.append(self.sweep, replace(entry, time=journal.now()))
        except OSError as error:
            log.warning("%s cannot be written: %s", self.sweep / JOBS, error.strerror)

    def _result(self, entry: JournalEntry, stopped: int) -> "float | NoMetric":
        if entry.status in (Status.FAILED, Status.LOCKED):
            log.error("job %s: %s", entry.job or entry.label, entry.reason)
        if stopped:
            if os.getpid() == self.main_pid:
                sys.exit(stopped)  # so that no other job starts
            return NoMetric(entry.status, stopped)
        if entry.best_val_loss is None:
            return NoMetric(entry.reason or "the job has no validation loss")
        return entry.best_val_loss


def find_job_start(
    line: CommandLine,
    sweep: Path,
    overrides: list[str],
    values: dict[str, Any],
    own: RecordedJob | None,
    *,
    locks: bool,
) -> Start:
    """Return how a job starts: a resume in its directory `own`, a new run, or a fork.

    Raises the errors of `find_start`.
    """
    values = dict(values)
    if own is not None and own.step is not None and values["fork"]:
        values |= {"resume": AUTO, "fork": None}  # the first launch forked the run
    elif values["resume"] == AUTO and own is None:
        values["resume"] = None
    directory = own.directory if own else None
    start = find_start(
        values=values,
        overrides=overrides,
        scope=Scope(sweep.parent, directory),
        compose=lambda given: compose_config(line.config_name, given, line.config_dir).values,
        locks=locks,
    )
    # A directory without a checkpoint, left by an earlier launch, belongs to the job.
    return replace(start, restarts_run=True) if own and not start.directory else start


def _write_record(record: Path, config: DictConfig, launch: DictConfig) -> None:
    """Write the same three files as Hydra into the folder `record`."""
    record.mkdir(parents=True)
    hydra = OmegaConf.masked_copy(launch, "hydra")
    (record / "hydra.yaml").write_text(OmegaConf.to_yaml(hydra), encoding="utf-8")
    overrides = OmegaConf.to_yaml(launch.hydra.overrides.task)
    (record / "overrides.yaml").write_text(overrides, encoding="utf-8")
    (record / "config.yaml").write_text(OmegaConf.to_yaml(config), encoding="utf-8")


def _forget_compiled() -> None:
    """Reset torch.compile, which otherwise compiles at most eight shapes of a model."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
