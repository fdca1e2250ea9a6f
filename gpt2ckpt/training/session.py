"""One process of a run: builds the parts of the training loop, trains, and returns the outcome."""

import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import nn

from gpt2ckpt.checkpoint.event_sink import NO_EVENTS, EventSink
from gpt2ckpt.checkpoint.manager import CheckpointManager, ManagedRun, SavingOptions
from gpt2ckpt.config.checks import FSDP
from gpt2ckpt.data.loader import BlockLoader, validation, validation_digest
from gpt2ckpt.errors import InputError
from gpt2ckpt.loggers.fanout import Loggers
from gpt2ckpt.model.build import build_model, loss_of, with_named_errors
from gpt2ckpt.model.counts import size_of
from gpt2ckpt.optim.optimizers import build_optimizer
from gpt2ckpt.parallel.ddp import ParallelLoss, ddp_loss
from gpt2ckpt.parallel.process_group import DistributedGroup, ProcessGroup, SingleProcess
from gpt2ckpt.runs.claim import Claim
from gpt2ckpt.runs.events import EventLog
from gpt2ckpt.runs.history import identity_in
from gpt2ckpt.runs.layout import CHECKPOINTS, HISTORY, REPLAY
from gpt2ckpt.runs.lock import RunLock
from gpt2ckpt.runs.plugins import plugins_in_use
from gpt2ckpt.runs.start import Start
from gpt2ckpt.signals.deadline import Deadline
from gpt2ckpt.signals.training import TrainingSignals
from gpt2ckpt.training import run_summary, start_report
from gpt2ckpt.training.data_check import DataCheck, data_identity
from gpt2ckpt.training.disk_check import checkpoint_bytes
from gpt2ckpt.training.evaluation import Evaluation, evaluate
from gpt2ckpt.training.hardware import Hardware, prepare_process
from gpt2ckpt.training.loop import Loop
from gpt2ckpt.training.progress import open_progress
from gpt2ckpt.training.replay_check import ReplayCheck
from gpt2ckpt.training.reporting import Reporter
from gpt2ckpt.training.rng import seed_everything, seed_rank
from gpt2ckpt.training.run_loggers import RunLoggers
from gpt2ckpt.training.sampling import Sampler, Sampling
from gpt2ckpt.training.saving import Saver, retention_of
from gpt2ckpt.training.state import Counters, Provenance, TrainingState
from gpt2ckpt.training.step import StepHooks, Stepper
from gpt2ckpt.training.throughput import Meter, peak_flops
from gpt2ckpt.training.validate_run import ValidatedRun

log = logging.getLogger(__name__)

FINISH_WAITS = 60.0  # seconds that a finished run waits for loggers that still make progress
STOP_WAITS = 5.0  # the same for a run that a signal or an error stopped


@dataclass(frozen=True)
class Outcome:
    """How a process of a run ended; `stopped` is None if the run is finished."""

    stopped: signal.Signals | None
    best_val_loss: float | None


@dataclass(frozen=True)
class Session:
    """One process that trains in a run directory. Call `run` once.

    `run` builds the training state, restores the saved state of a resume, builds the parts of the
    training loop and runs the loop. On any exit, the last save is completed, the loggers are closed
    and, on the first rank, the summary is logged. With several ranks, each rank runs a session, and
    only the first rank writes to the directory.

    Attributes:
        directory: The claimed run directory.
        start: The config, and the saved state to resume, whose tensors are released once restored.
        validated: The checked config and the open data.
        hardware: The device and precision of this rank.
        group: The ranks that train together.
        lock: The lock on the directory, checked before each save; None on all ranks but the first.
    """

    directory: Path
    start: Start
    validated: ValidatedRun
    hardware: Hardware
    group: ProcessGroup = field(default_factory=SingleProcess)
    lock: RunLock | None = None
    signals: TrainingSignals | None = None

    def run(self) -> Outcome:
        """Train until the run is finished or a signal stops it; record start and end as events."""
        trainer, hardware, state = self.validated.config.trainer, self.hardware, None
        prepare_process(hardware, deterministic=trainer.deterministic)
        self.group.join(hardware.device)
        events = EventLog(self.directory) if self.group.is_first else NO_EVENTS
        try:
            start_report.record_start(events, self.start, hardware, self.group.size)
            state = self._build_state()
            outcome, counters = self._train(state, events), state.counters
            if outcome.stopped is None:
                by = self.validated.callbacks.stopped_by
                events.write(
                    "run_finished",
                    counters.step,
                    best_val_loss=counters.best_val_loss,
                    callback=by.callback if by else None,
                    reason=by.reason if by else None,
                )
            else:
                events.write("run_stopped", counters.step, signal=outcome.stopped.name, error=None)
            return outcome
        except BaseException as error:
            step = state.counters.step if state else self.start.step
            reason = f"{type(error).__name__}: {error}"
            events.write("run_stopped", step, signal=None, error=reason)
            raise
        finally:
            events.close()

    def _train(self, state: TrainingState, events: EventSink) -> Outcome:
        hardware = self.hardware
        provenance = Provenance(
            run=identity_in(self.directory, self.start.identity),
            config=self.validated.frozen,
            overrides=self.start.overrides,
            data=data_identity(self.validated.corpus, self.validated.blocks_per_epoch),
            environment=hardware.recorded(self.group.size),
            plugins=plugins_in_use(self.validated.frozen),
        )
        loop = self._build_loop(state, provenance, events)
        if self.group.is_first:
            start_report.log_start(
                self.directory, self.start, self.validated, hardware, self.group.size
            )
        waits = STOP_WAITS
        try:
            stopped = loop.run()
            if stopped is None:
                waits = FINISH_WAITS
        finally:
            loop.reporter.close(waits, loop.saver.deadline)
        if self.group.is_first:
            run_summary.log_end(self.directory, loop.reporter, stopped)
        manager = loop.saver.manager
        if manager is not None and manager.failed_step is not None:
            self._report_failed_last_save(manager.failed_step, stopped)
        return Outcome(stopped, state.counters.best_val_loss)

    def _build_state(self) -> TrainingState:
        """Return the restored state of a resume, or a new state that follows from the seed."""
        config, device = self.validated.config, self.hardware.device
        seed_everything(config.seed)
        model = build_model(config.model)
        if self.validated.pretrained is not None:
            model.load_state_dict(self.validated.pretrained.weights)
        model.to(device)
        if self._is_sharded:
            from gpt2ckpt.parallel.fsdp import apply_fsdp

            apply_fsdp(model, device, self.group.size)
        optimizer = build_optimizer(config.optimizer, model)
        scaler = torch.amp.GradScaler(device.type, enabled=self.hardware.precision == "float16")
        counters = Counters()
        state = TrainingState(model, optimizer, scaler, counters, self.group, self._is_sharded)
        if self.start.state is not None:
            state.restore(self.start.state)
            if self.start.directory is None:
                state.counters.set_best(None)  # a fork has no best model of its own yet
            self.start.state.drop_tensors()  # already copied; they would double the memory
        return state

    @property
    def _is_sharded(self) -> bool:
        is_requested = self.validated.config.trainer.parallel == FSDP
        return is_requested and isinstance(self.group, DistributedGroup)

    def _build_loop(self, state: TrainingState, provenance: Provenance, events: EventSink) -> Loop:
        loggers = self._open_loggers(provenance, state.counters.step)
        replay = self._open_replay()
        manager = self._open_manager(provenance.run.id, events)
        signals = self.signals or TrainingSignals()
        if isinstance(self.group, DistributedGroup):
            signals = TrainingSignals(self.group.all_reduce_max, self.group.launcher_has_died)
        grace = self.validated.config.checkpoint.grace_seconds
        saver = Saver(
            state=state,
            validated=self.validated,
            provenance=provenance,
            manager=manager,
            loggers=loggers,
            deadline=Deadline(grace, lambda: signals.stop_requested_at),
            data_check=self._check_data(provenance),
        )
        total_steps, is_first = self.validated.total_steps, self.group.is_first
        bar = open_progress(total_steps, state.counters.step, shown=is_first)
        hooks = StepHooks(self._reseeding(), saver.should_abandon_step, bar.part)
        stepper = self._build_stepper(state, hooks)
        reporter = Reporter(
            state=state,
            validated=self.validated,
            loggers=loggers,
            events=events,
            replay=replay,
            meter=self._build_meter(),
            bar=bar,
        )
        self.validated.callbacks.attach(
            state, self.directory, self.validated.frozen, signals.request_end
        )
        if is_first:
            signals.newest_checkpoint_message = saver.newest_checkpoint_message
        return Loop(
            state=state,
            stepper=stepper,
            saver=saver,
            reporter=reporter,
            evaluate=partial(self._evaluate, state.model),
            sample=self._build_sampler(state.model),
            signals=signals,
        )

    def _open_loggers(self, provenance: Provenance, step: int) -> Loggers:
        if not self.group.is_first:
            return Loggers(None)
        is_resumed = self.start.directory is not None or self.start.restarts_run
        config = self.validated.config.logger
        return RunLoggers(self.directory, config, provenance, step=step, is_resumed=is_resumed)

    def _open_replay(self) -> ReplayCheck:
        if not self.group.is_first:
            return ReplayCheck([])
        return ReplayCheck.of_run(self.directory / REPLAY, self.directory / HISTORY)

    def _open_manager(self, run: str, events: EventSink) -> CheckpointManager | None:
        checkpoint = self.validated.config.checkpoint
        if not (checkpoint.enabled and self.group.is_first):
            return None
        resumed_from = self.start.found.path if self.start.found else None
        manager = CheckpointManager(
            self.directory / CHECKPOINTS,
            retention_of(checkpoint),
            resumed_from,
            options=SavingOptions(
                in_background=checkpoint.async_save,
                hang_seconds=checkpoint.hang_seconds,
                scrub_every=checkpoint.scrub_every,
                scrub_mb_per_s=checkpoint.scrub_mb_per_s,
                saves_best=checkpoint.save_best,
            ),
            run=ManagedRun(
                id=run,
                state=self.start.state if self.start.directory else None,
                check_owner=self.lock.check if self.lock else lambda: None,
                events=events,
                on_saved=self.validated.callbacks.saved_files.append,
            ),
        )
        manager.reserve(checkpoint_bytes(self.start, self.validated.config))
        return manager

    def _check_data(self, provenance: Provenance) -> DataCheck | None:
        """Start to verify large data files in the background, on the first rank only.

        The other ranks read the same files.
        """
        if not self.group.is_first:
            return None
        expected = self.validated.expected_files
        return DataCheck(self.validated.corpus, provenance.data, expected, self.start.state)

    def _reseeding(self) -> Callable[[int], None]:
        """Return the function that seeds this rank before a step.

        A checkpoint holds the random generators of the first rank only. The seed of every other
        rank follows from the step.
        """
        if self.group.is_first:
            return lambda step: None
        return partial(seed_rank, self.validated.config.seed, self.group.rank)

    def _build_stepper(self, state: TrainingState, hooks: StepHooks) -> Stepper:
        config = self.validated.config
        stepper = Stepper(
            parallel=self._parallelize(state.model),
            loader=BlockLoader(self.validated.corpus.train, config.model.block_size, config.seed),
            hardware=self.hardware,
            trainer=config.trainer,
            group=self.group,
            hooks=hooks,
        )
        if isinstance(self.group, DistributedGroup) and not self._is_sharded:
            stepper.warm_up_ddp(state)
        return stepper

    def _parallelize(self, model: nn.Module) -> ParallelLoss:
        """Return the loss function, whose gradients are averaged over all ranks."""
        loss = loss_of(model)
        if self.validated.config.trainer.compile:
            loss = torch.compile(loss)
        loss = with_named_errors(self.validated.config.model, loss)
        if self._is_sharded:
            from gpt2ckpt.parallel.fsdp import fsdp_loss

            return fsdp_loss(model, loss)
        if isinstance(self.group, SingleProcess):
            return ParallelLoss(loss)
        return ddp_loss(model, loss, self.hardware.device)

    def _build_meter(self) -> Meter:
        tokens_per_step = self.validated.tokens_per_step
        return Meter(tokens_per_step, self.hardware.device, self._peak_tokens_per_s())

    def _peak_tokens_per_s(self) -> float | None:
        """Return the peak tokens per second of the devices of all ranks; None if unknown."""
        hardware, model = self.hardware, self.validated.config.model
        if hardware.device.type != "cuda":
            return None
        peak = peak_flops(hardware.name, hardware.precision)
        return None if peak is None else peak * self.group.size / size_of(model).flops_per_token

    def _evaluate(self, model: nn.Module, stop: Callable[[], bool]) -> Evaluation | None:
        """Return the loss over the first `eval_blocks` token blocks of the validation split."""
        trainer, block_size = self.validated.config.trainer, self.validated.config.model.block_size
        val, blocks = self.validated.corpus.val, trainer.eval_blocks
        batches = validation(val, block_size, trainer.batch_size, limit=blocks)
        loss = with_named_errors(self.validated.config.model, loss_of(model))
        evaluation = evaluate(model, batches, self.hardware, stop, self.group, loss=loss)
        return replace(evaluation, blocks=self._evaluated_blocks) if evaluation else None

    @cached_property
    def _evaluated_blocks(self) -> str:
        """Return the digest of the token blocks that each evaluation covers."""
        config = self.validated.config
        val, blocks = self.validated.corpus.val, config.trainer.eval_blocks
        return validation_digest(val, config.model.block_size, blocks)

    def _build_sampler(self, model: nn.Module) -> Sampler:
        trainer, seed = self.validated.config.trainer, self.validated.config.seed
        sampling = Sampling(trainer.sample_prompt, trainer.sample_tokens, seed)
        sampler = Sampler(
            model=model,
            shape=self.validated.config.model,
            sampling=sampling,
            hardware=self.hardware,
            group=self.group,
            is_sharded=self._is_sharded,
        )
        if self.group.is_first and 0 < trainer.sample_every <= self.validated.total_steps:
            sampler.load()
        return sampler

    def _report_failed_last_save(self, step: int, stopped: signal.Signals | None) -> None:
        """Warn that a resume will return to an older step.

        Raises:
            InputError: The failed save was that of the last step, so the run is not finished.
        """
        command = run_summary.resume_command(self.directory, self.group.size)
        message = (
            f"the last save, at step {step}, failed, and the newest checkpoint is older. Free disk "
            f"space or repair the file system of {self.directory}, then resume: {command}"
        )
        if not stopped:
            raise InputError(message)
        log.warning("%s", message)


def train_claimed(
    *,
    claim: Claim,
    start: Start,
    validated: ValidatedRun,
    hardware: Hardware,
    group: ProcessGroup,
    signals: TrainingSignals | None = None,
) -> Outcome:
    """Train in the claimed directory, and release its lock.

    `signals` are the signal handlers; None for those of a command.
    """
    with claim.lock:
        for line in [claim.notice, *start.notices()]:
            if line:
                log.info("%s", line)
        group.publish_directory(str(claim.directory))
        session = Session(
            directory=claim.directory,
            start=start,
            validated=validated,
            hardware=hardware,
            group=group,
            lock=claim.lock,
            signals=signals,
        )
        return session.run()
