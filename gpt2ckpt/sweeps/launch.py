"""Runs a sweep: claims its folder, lets Hydra run the jobs, and prints the table."""

import os
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
from omegaconf import OmegaConf

from gpt2ckpt import console
from gpt2ckpt.application import CommandLine, run_hydra
from gpt2ckpt.config.compose import as_typed, in_shell, quoted, sets
from gpt2ckpt.config.replay import Values
from gpt2ckpt.exits import FULL_ERROR
from gpt2ckpt.runs.claim import claim_sweep, protection_notice
from gpt2ckpt.runs.command import command, with_plugins
from gpt2ckpt.runs.layout import RECORD, hydra_record
from gpt2ckpt.signals.early import exit_code, install
from gpt2ckpt.signals.sweeps import RELAYED, LauncherSignals
from gpt2ckpt.sweeps import folder, journal
from gpt2ckpt.sweeps.job import SweepJob
from gpt2ckpt.sweeps.journal import COMPLETE, JournalEntry, Status
from gpt2ckpt.sweeps.plan import SweepPlan, plan_sweep
from gpt2ckpt.sweeps.preview import preview
from gpt2ckpt.sweeps.table import Row, best, ranked, table

TABLE = "table.txt"


def run_sweep(line: CommandLine) -> int:
    """Train the jobs of a multirun, or preview them with dry_run; return the exit code.

    Raises:
        UserError: for an error that concerns all jobs. An error of one job ends only that job.
    """
    plan = plan_sweep(line)
    more: list[str] = []
    if plan.is_optuna:
        from gpt2ckpt.sweeps.optuna_study import check_study

        check_study(plan.values["trainer"]["eval_every"])
    if plan.values["dry_run"]:
        return preview(plan)
    sweep = _claim(plan)
    if plan.is_optuna:
        from gpt2ckpt.sweeps.optuna_study import settings_to_continue, study_settings

        sweeper, name = plan.hydra.sweeper, str(plan.values["name"])
        more = study_settings(sweeper, sweep, name, " ".join(line.overrides))
        if plan.is_continued:
            more += settings_to_continue(sweeper, sweep, name)
    launch = _Launch(plan, sweep, f"{datetime.now():%Y%m%d_%H%M%S}_{os.getpid()}")
    return launch.run(more)


def _claim(plan: SweepPlan) -> Path:
    """Return the folder of the resumed sweep, or a new folder."""
    wanted, is_given = plan.wanted, plan.is_given
    sweep = claim_sweep(wanted, is_given=is_given, is_continued=plan.is_continued)
    if is_given and sweep != wanted:
        print(protection_notice(wanted, sweep, "hydra.sweep.dir"))
    return sweep


@dataclass(frozen=True)
class _Launch:
    """One start of the command for a sweep; `name` marks its entries in the journal."""

    plan: SweepPlan
    sweep: Path
    name: str

    def run(self, more: list[str]) -> int:
        """Let Hydra run all jobs, and print the table; return the exit code."""
        console.install()  # before Hydra opens its log, so that no job waits for a reader
        signals = LauncherSignals(self._stop_workers)
        if self.plan.is_parallel:
            install(signals, signals.before)
        hydra = OmegaConf.to_container(self.plan.hydra, resolve=False)
        assert isinstance(hydra, dict)
        kept = {"subdir": hydra["sweep"]["subdir"], "job_logging": hydra["job_logging"]}
        job = SweepJob(
            line=self.plan.line,
            sweep=self.sweep,
            launch=self.name,
            swept=self.plan.swept,
            hydra=kept,
            main_pid=os.getpid(),
            wants_trace=os.environ.get(FULL_ERROR) == "1",
        )
        overrides = [f"hydra.sweep.dir={quoted(str(self._record()))}", "hydra.sweep.subdir=."]
        overrides += ["hydra.output_subdir=null", "hydra.job_logging.root=null", *more]
        broken, stopped = "", 0
        try:
            run_hydra(self.plan.line, job, overrides)
        except SystemExit as end:
            stopped = int(end.code or 0) if isinstance(end.code, int | None) else 1
        except Exception as error:  # a killed worker, or an error of the sweeper
            broken = f"the sweep ended early: {type(error).__name__}: {error}".splitlines()[0]
        if signals.received is not None:
            stopped = exit_code(signals.received)
        rows = ranked(self._rows())
        lines = [*table(rows, best(rows)), *self._continue_best(best(rows))]
        self._write_table(lines)
        print("\n".join(["", *lines]), flush=True)
        if broken and not stopped:
            print(f"error: {broken}", file=sys.stderr)
        complete = not broken and all(row.status in COMPLETE for row in rows)
        if not complete:
            print(f"to resume: {self._command()}")
        return stopped or (0 if complete else 1)

    def _record(self) -> Path:
        """Return the folder for multirun.yaml: the sweep's, or a new one for a later launch."""
        if not (self.sweep / "multirun.yaml").exists():
            return self.sweep
        first = self.sweep / RECORD
        first.mkdir(exist_ok=True)
        return self.sweep / hydra_record(self.sweep)

    def _rows(self) -> list[Row]:
        entries = journal.last_of_each(journal.read(self.sweep, self.name))
        labels = {number: job.job.label for number, job in enumerate(self.plan.jobs)}
        labels |= {number: entry.label for number, entry in entries.items()}
        rows = [
            _row(entries.get(number, JournalEntry(self.name, number, Status.NOT_STARTED)), label)
            for number, label in sorted(labels.items())
        ]
        if self.plan.jobs:
            return rows
        # Trials of earlier launches are part of the search, and one of them may be the best.
        known = {row.job for row in rows}
        earlier = {entry.job: entry for entry in journal.read(self.sweep) if entry.job}
        return rows + [
            _row(entry, entry.label) for job, entry in earlier.items() if job not in known
        ]

    def _continue_best(self, row: Row | None) -> list[str]:
        """Return lines with the directory of the best job and the command that resumes the job."""
        if row is None:
            return []
        directory = self.sweep / row.job
        lines = [f"best: {directory}"]
        recorded = folder.read_job(directory)
        if recorded is not None and recorded.step is not None:
            given = as_typed("hydra.run.dir", str(directory))
            more = _twice_as_long(recorded.config, recorded.step)
            longer = command("train", *with_plugins("+resume=latest", given, more))
            lines.append(f"to resume it for longer: {longer}")
        return lines

    def _write_table(self, lines: list[str]) -> None:
        try:
            (self.sweep / TABLE).write_text("\n".join([*lines, ""]), encoding="utf-8")
        except OSError as error:
            problem = f"cannot write {self.sweep / TABLE} ({error.strerror}): copy the table below"
            print(problem, file=sys.stderr)

    def _command(self) -> str:
        overrides = [
            in_shell(override)
            for override in self.plan.typed
            if not sets(override, "hydra.sweep.dir", "resume")
        ]
        flags = [in_shell(flag) for flag in self.plan.line.flags]
        typed = as_typed("hydra.sweep.dir", str(self.sweep))
        return command("train", *flags, *overrides, typed, "+resume=auto")

    def _stop_workers(self) -> None:
        """Record the stop for workers that are about to train, and signal those that train."""
        journal.append(self.sweep, JournalEntry(self.name, -1, Status.STOP))
        entries = journal.last_of_each(journal.read(self.sweep, self.name)).values()
        training = {entry.pid for entry in entries if entry.status is Status.STARTED}
        for child in psutil.Process().children(recursive=True):
            if child.pid in training:
                child.send_signal(RELAYED)


def _row(entry: JournalEntry, label: str) -> Row:
    status, reason = entry.status, entry.reason
    if status is Status.STARTED:
        status, reason = Status.FAILED, "its process was killed"
    return Row(entry.job or "-", label, status, entry.best_val_loss, reason)


def _twice_as_long(config: Values, step: int) -> str:
    """Return the override that doubles the length of a job that ended after `step` steps."""
    epochs, steps = config["trainer.max_epochs"], config["trainer.max_steps"]
    if epochs and steps != step:
        return f"trainer.max_epochs={2 * epochs}"
    return f"trainer.max_steps={2 * step}"
