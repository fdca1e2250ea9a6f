"""One process of a run: builds the parts from a prepared start, trains, and reports."""

import contextlib
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from gpt2ckpt.checkpoint.event_sink import NO_EVENTS, EventSink
from gpt2ckpt.checkpoint.manager import CheckpointManager
from gpt2ckpt.config.checks import FSDP
from gpt2ckpt.data.loader import BlockLoader, validation, validation_digest
from gpt2ckpt.errors import InputError
from gpt2ckpt.loggers import metrics_file
from gpt2ckpt.loggers.fanout import Loggers
from gpt2ckpt.loggers.tensorboard import TensorBoardLogger
from gpt2ckpt.loggers.wandb import WandbLogger, service_progress
from gpt2ckpt.model.counts import count_flops_per_token
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.optim.optimizers import build_optimizer
from gpt2ckpt.parallel.ddp import ParallelLoss, ddp_loss, no_gradient_sync
from gpt2ckpt.parallel.process_group import DistributedGroup, ProcessGroup, SingleProcess
from gpt2ckpt.runs.claim import Claim
from gpt2ckpt.runs.events import EventLog
from gpt2ckpt.runs.history import identity_in, origin_in
from gpt2ckpt.runs.layout import CHECKPOINTS, HISTORY, REPLAY, TENSORBOARD, run_title
from gpt2ckpt.runs.lock import RunLock
from gpt2ckpt.runs.start import Start
from gpt2ckpt.signals.deadline import Deadline, step_fits
from gpt2ckpt.signals.training import TrainingSignals
from gpt2ckpt.training import run_summary
from gpt2ckpt.training.data_check import DataCheck, data_identity
from gpt2ckpt.training.disk_check import checkpoint_bytes
from gpt2ckpt.training.evaluation import Evaluation, evaluate
from gpt2ckpt.training.hardware import Hardware, prepare_process
from gpt2ckpt.training.loop import Loop
from gpt2ckpt.training.peak_flops import peak_flops
from gpt2ckpt.training.progress import Progress, open_progress
from gpt2ckpt.training.replay_check import ReplayCheck
from gpt2ckpt.training.rng import seed_everything, seed_rank
from gpt2ckpt.training.sampling import Sampler, Sampling
from gpt2ckpt.training.saving import Saver, retention_of
from gpt2ckpt.training.state import Counters, Provenance, TrainingState
from gpt2ckpt.training.step import Stepper
from gpt2ckpt.training.throughput import Meter
from gpt2ckpt.training.validate_run import ValidatedRun

log = logging.getLogger(__name__)

REOPEN_WAITS = 10.0  # seconds that a rollback waits for loggers before it opens them anew
FINISH_WAITS = 60.0  # seconds that a finished training waits for loggers that make progress
STOP_WAITS = 5.0  # the same after a signal or an error


@dataclass(frozen=True)
class Outcome:
    """How a process of a run ended: by a signal, or (None) because the training is finished."""

    stopped: signal.Signals | None
    best_val_loss: float | None


@dataclass(frozen=True)
class Session:
    """Where one process of a run trains, from what, and on what."""

    directory: Path
    start: Start
    validated: ValidatedRun
    hardware: Hardware
    group: ProcessGroup = field(default_factory=SingleProcess)
    lock: RunLock | None = None

    def run(self) -> Outcome:
        """Train to the end or to a signal. The start and the end are events of the run."""
        trainer, hardware, state = self.validated.config.trainer, self.hardware, None
        prepare_process(hardware, deterministic=trainer.deterministic)
        self.group.join(hardware.device)
        events = EventLog(self.directory) if self.group.is_first else NO_EVENTS
        try:
            run_summary.record_start(events, self.start, hardware, self.group.size)
            state = self._build_state()
            outcome, counters = self._train(state, events), state.counters
            if outcome.stopped is None:
                events.write("run_finished", counters.step, best_val_loss=counters.best_val_loss)
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
        )
        resumed = self.start.directory is not None or self.start.restarts_run
        loggers = self._open_loggers(provenance, state.counters.step, resumed=resumed)
        replay = self._open_replay()
        loop = self._build_loop(state, provenance, loggers, replay, events)
        if self.group.is_first:
            run_summary.start(self.directory, self.start, self.validated, hardware, self.group.size)
        waits = STOP_WAITS
        try:
            stopped = loop.run()
            if stopped is None:
                waits = FINISH_WAITS
        finally:
            loop.bar.close()
            left = loop.deadline.left()
            loop.loggers.close(waits if left is None else max(0.0, min(waits, left)))
            if sentence := loop.replay.interrupted(state.counters.step):
                log.info("%s", sentence)
        if self.group.is_first:
            run_summary.end(self.directory, loop, stopped)
        manager = loop.saver.manager
        if manager is not None and manager.failed_step is not None:
            self._report_failed_last_save(manager.failed_step, stopped)
        return Outcome(stopped, state.counters.best_val_loss)

    def _build_state(self) -> TrainingState:
        """Return the state to train: the saved one, or a new one, in which the seed decides all."""
        config, device = self.validated.config, self.hardware.device
        seed_everything(config.seed)
        model = GPT2(config.model)
        if self.validated.pretrained is not None:
            model.load_state_dict(self.validated.pretrained.weights)
        model.to(device)
        if self._is_sharded:
            from gpt2ckpt.parallel.fsdp import apply_fsdp

            apply_fsdp(model, device, self.group.size)
        optimizer = build_optimizer(config.optimizer, model, device.type)
        scaler = torch.amp.GradScaler(device.type, enabled=self.hardware.precision == "float16")
        counters = Counters()
        state = TrainingState(model, optimizer, scaler, counters, self.group, self._is_sharded)
        if self.start.state is not None:
            state.restore(self.start.state)
            if self.start.directory is None:
                state.counters.set_best(None)  # that is the parent's
            self.start.state.drop_tensors()  # copied: held, they would double the memory
        return state

    @property
    def _is_sharded(self) -> bool:
        is_asked = self.validated.config.trainer.parallel == FSDP
        return is_asked and isinstance(self.group, DistributedGroup)

    def _build_loop(
        self,
        state: TrainingState,
        provenance: Provenance,
        loggers: Loggers,
        replay: ReplayCheck,
        events: EventSink,
    ) -> Loop:
        config, validated = self.validated.config, self.validated
        manager, signals = self._open_manager(provenance.run.id, events), TrainingSignals()
        if isinstance(self.group, DistributedGroup):
            signals = TrainingSignals(self.group.all_reduce_max, self.group.launcher_has_died)
        data_check = self._check_data(provenance)
        deadline = Deadline(config.checkpoint.grace_seconds, lambda: signals.stop_requested_at)
        bar = self._open_bar(state.counters.step)
        stepper = self._build_stepper(state, manager, deadline, bar)
        tokens_per_step = validated.blocks_per_step * config.model.block_size
        saver = Saver(
            *(state, manager, not config.checkpoint.enabled, provenance, validated.schedule),
            *(validated.total_steps, validated.blocks_per_epoch, deadline, loggers),
            partial(data_check.wait, lambda: signals.stop_requested) if data_check else None,
            saves_best=config.checkpoint.enabled and config.checkpoint.save_best,
        )
        if self.group.is_first:
            signals.newest_checkpoint_message = saver.newest_checkpoint_message
        return Loop(
            state=state,
            stepper=stepper,
            schedule=validated.schedule,
            total_steps=validated.total_steps,
            blocks_per_epoch=validated.blocks_per_epoch,
            tokens_per_step=tokens_per_step,
            trainer=config.trainer,
            checkpoint=config.checkpoint,
            saver=saver,
            loggers=loggers,
            replay=replay,
            meter=Meter(tokens_per_step, self.hardware.device, self._peak_tokens_per_s()),
            bar=bar,
            evaluate=partial(self._evaluate, state.model),
            sample=self._build_sampler(state.model),
            reopen=partial(self._reopen, provenance),
            deadline=deadline,
            signals=signals,
            group=self.group,
            last_blocks=self._blocks_of_last_step(),
            check_data=data_check.poll if data_check else None,
            events=events,
        )

    def _check_data(self, provenance: Provenance) -> DataCheck | None:
        """Begin to read large files whole, on the first rank: all ranks read the same files."""
        if not self.group.is_first:
            return None
        expected = self.validated.expected_files
        return DataCheck(self.validated.corpus, provenance.data, expected, self.start.state)

    def _peak_tokens_per_s(self) -> float | None:
        """What all ranks could train at the peak of their devices, if that is known."""
        hardware, model = self.hardware, self.validated.config.model
        if hardware.device.type != "cuda":
            return None
        peak = peak_flops(hardware.name, hardware.precision)
        return None if peak is None else peak * self.group.size / count_flops_per_token(model)

    def _blocks_of_last_step(self) -> int:
        """By the config that the state was trained with: a resume may have another batch."""
        if self.start.state is None:
            return 0
        return self.start.state.blocks_per_step or 0

    def _build_stepper(
        self,
        state: TrainingState,
        manager: CheckpointManager | None,
        deadline: Deadline,
        bar: Progress,
    ) -> Stepper:
        config, trainer = self.validated.config, self.validated.config.trainer
        loader = BlockLoader(self.validated.corpus.train, config.model.block_size, config.seed)
        replica, is_alone = self._replicate(state.model), isinstance(self.group, SingleProcess)

        def should_abandon(fraction_left: float) -> bool:
            save = manager.seconds_to_save() if manager is not None else None
            # Ranks give nothing up: they would have to agree within a step.
            return is_alone and not step_fits(
                fraction_left, deadline.step_seconds, save, deadline.left()
            )

        stepper = Stepper(
            *(replica.loss, loader, self.hardware),
            *(trainer.batch_size, trainer.grad_accum, trainer.grad_clip),
            *(self.group, replica.gradient_sync, self._reseeding()),
            *(trainer.spike_zscore, trainer.spike_window),
            *(should_abandon, bar.part),
        )
        if isinstance(self.group, DistributedGroup) and not self._is_sharded:
            stepper.warm_up_ddp(state)
        return stepper

    def _replicate(self, model: GPT2) -> ParallelLoss:
        """The loss to train with; on several ranks, one whose gradients are those of all."""
        if self._is_sharded:
            from gpt2ckpt.parallel.fsdp import fsdp_loss

            return fsdp_loss(model)
        loss = torch.compile(model.loss) if self.validated.config.trainer.compile else model.loss
        if isinstance(self.group, SingleProcess):
            return ParallelLoss(loss, no_gradient_sync)
        return ddp_loss(model, loss, self.hardware.device)

    def _reseeding(self) -> Callable[[int], None] | None:
        """The first rank's generators are saved; those of the others follow from the step."""
        if self.group.is_first:
            return None
        return partial(seed_rank, self.validated.config.seed, self.group.rank)

    def _open_replay(self) -> ReplayCheck:
        if not self.group.is_first:
            return ReplayCheck([])
        return ReplayCheck.of_run(self.directory / REPLAY, self.directory / HISTORY)

    def _open_bar(self, step: int) -> Progress:
        return open_progress(self.validated.total_steps, step, shown=self.group.is_first)

    def _evaluate(self, model: GPT2, stop: Callable[[], bool]) -> Evaluation | None:
        """Validation loss over the same first blocks every time."""
        trainer, block_size = self.validated.config.trainer, self.validated.config.model.block_size
        val, blocks = self.validated.corpus.val, trainer.eval_blocks
        batches = validation(val, block_size, trainer.batch_size, limit=blocks)
        evaluation = evaluate(model, batches, self.hardware, stop, self.group)
        return replace(evaluation, blocks=self._evaluated_blocks) if evaluation else None

    @cached_property
    def _evaluated_blocks(self) -> str:
        """A digest of the blocks of each evaluation."""
        config = self.validated.config
        val, blocks = self.validated.corpus.val, config.trainer.eval_blocks
        return validation_digest(val, config.model.block_size, blocks)

    def _build_sampler(self, model: GPT2) -> Sampler:
        trainer, seed = self.validated.config.trainer, self.validated.config.seed
        sampling = Sampling(trainer.sample_prompt, trainer.sample_tokens, seed)
        sampler = Sampler(model, sampling, self.hardware, self.group, is_sharded=self._is_sharded)
        if self.group.is_first and 0 < trainer.sample_every <= self.validated.total_steps:
            sampler.load()
        return sampler

    def _open_manager(self, run: str, events: EventSink) -> CheckpointManager | None:
        checkpoint = self.validated.config.checkpoint
        if not (checkpoint.enabled and self.group.is_first):
            return None
        resumed_from = self.start.found.path if self.start.found else None
        manager = CheckpointManager(
            *(self.directory / CHECKPOINTS, retention_of(checkpoint), resumed_from),
            in_background=checkpoint.async_save,
            hang_seconds=checkpoint.hang_seconds,
            scrub_every=checkpoint.scrub_every,
            scrub_mb_per_s=checkpoint.scrub_mb_per_s,
            check_owner=self.lock.check if self.lock else lambda: None,
            saves_best=checkpoint.save_best,
            run=run,
            known=self.start.state if self.start.directory else None,
            events=events,
        )
        manager.reserve(checkpoint_bytes(self.start, self.validated.config))
        return manager

    def _reopen(self, provenance: Provenance, loggers: Loggers, step: int) -> Loggers:
        """After a rollback to `step`: as a resume from there would open them."""
        loggers = loggers.reopen(step, REOPEN_WAITS)
        if self.group.is_first:
            with contextlib.suppress(OSError):  # it only costs a resume a comparison
                (self.directory / REPLAY).unlink(missing_ok=True)
            self._add_loggers(loggers, provenance, step, resumed=True)
        return loggers

    def _open_loggers(self, provenance: Provenance, step: int, *, resumed: bool) -> Loggers:
        if not self.group.is_first:
            return Loggers(None)
        loggers = Loggers(metrics_file.MetricsFile(self.directory / HISTORY))
        self._add_loggers(loggers, provenance, step, resumed=resumed)
        return loggers

    def _add_loggers(
        self, loggers: Loggers, provenance: Provenance, step: int, *, resumed: bool
    ) -> None:
        config = self.validated.config.logger
        history: list[dict[str, Any]] = []
        # Read here: the loggers' threads begin when more is logged.
        with contextlib.suppress(OSError):
            events = metrics_file.read(self.directory / HISTORY)
            history = [event for event in events if event["step"] <= step]
        if config.tensorboard:
            folder = self.directory / TENSORBOARD
            loggers.add(
                "TensorBoard",
                lambda: TensorBoardLogger(folder, step + 1, history, provenance.config),
            )
        if config.wandb:
            loggers.add(
                "W&B",
                lambda: WandbLogger(
                    run_dir=self.directory,
                    project=config.wandb_project,
                    entity=config.wandb_entity,
                    tags=config.wandb_tags,
                    run_id=provenance.run.wandb_id or provenance.run.id,
                    name=run_title(self.directory),
                    config=provenance.config,
                    resume=resumed,
                    history=history,
                    origin=origin_in(self.directory),
                ),
                service_progress,
            )

    def _report_failed_last_save(self, step: int, stopped: signal.Signals | None) -> None:
        """The last save failed: to go on means to go back. A finished run is not finished then."""
        command = run_summary.resume_command(self.directory, self.group.size)
        sentence = (
            f"the last save, at step {step}, failed, and an older one is the newest: free space "
            f"or mend {self.directory}, then {command}"
        )
        if not stopped:
            raise InputError(sentence)
        log.warning("%s", sentence)


def train_claimed(
    claim: Claim, start: Start, validated: ValidatedRun, hardware: Hardware, group: ProcessGroup
) -> Outcome:
    """Train in the claimed directory, and release it."""
    with claim.lock:
        for line in [claim.notice, *start.notices()]:
            if line:
                log.info("%s", line)
        group.publish_directory(str(claim.directory))
        return Session(claim.directory, start, validated, hardware, group, claim.lock).run()
