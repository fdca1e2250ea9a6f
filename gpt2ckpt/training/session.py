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

from gpt2ckpt.checkpoint.manager import CheckpointManager
from gpt2ckpt.config.checks import FSDP
from gpt2ckpt.data.loader import BlockLoader, validation, validation_digest
from gpt2ckpt.errors import InputError
from gpt2ckpt.loggers import metrics_file
from gpt2ckpt.loggers.event import Nowhere
from gpt2ckpt.loggers.fanout import Loggers
from gpt2ckpt.loggers.tensorboard import TensorBoardLogger
from gpt2ckpt.loggers.wandb import WandbLogger, service_progress
from gpt2ckpt.model.counts import count_flops_per_token
from gpt2ckpt.model.gpt2 import GPT2
from gpt2ckpt.optim.optimizers import build_optimizer
from gpt2ckpt.parallel.group import Alone, Group, Team
from gpt2ckpt.parallel.replica import Replica, at_once, data_parallel
from gpt2ckpt.runs.claim import Claim
from gpt2ckpt.runs.history import identity_in, origin_in
from gpt2ckpt.runs.layout import CHECKPOINTS, HISTORY, REPLAY, TENSORBOARD, run_title
from gpt2ckpt.runs.lock import RunLock
from gpt2ckpt.runs.start import Start
from gpt2ckpt.training import announce
from gpt2ckpt.training.deadline import Deadline, step_fits
from gpt2ckpt.training.evaluation import Evaluation, evaluate
from gpt2ckpt.training.hardware import Hardware, prepare_process
from gpt2ckpt.training.interrupts import Interrupts
from gpt2ckpt.training.loop import Loop
from gpt2ckpt.training.meter import Meter
from gpt2ckpt.training.peaks import peak_flops
from gpt2ckpt.training.preparation import Prepared
from gpt2ckpt.training.progress import Progress, open_progress
from gpt2ckpt.training.replay_check import ReplayCheck
from gpt2ckpt.training.rng import seed_everything, seed_rank
from gpt2ckpt.training.room import checkpoint_bytes
from gpt2ckpt.training.same_data import DataCheck, facts_of
from gpt2ckpt.training.sampling import Sampler, Sampling
from gpt2ckpt.training.saving import Saver, retention_of
from gpt2ckpt.training.state import Counters, Provenance, TrainingState
from gpt2ckpt.training.step import Stepper

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
    prepared: Prepared
    hardware: Hardware
    team: Team = field(default_factory=Alone)
    lock: RunLock | None = None

    def run(self) -> Outcome:
        """Train to the end or to a signal."""
        config, hardware = self.prepared.config, self.hardware
        prepare_process(hardware, deterministic=config.trainer.deterministic)
        self.team.join(hardware.device)
        state = self._build_state()
        provenance = Provenance(
            run=identity_in(self.directory, self.start.identity),
            config=self.prepared.frozen,
            overrides=self.start.overrides,
            data=facts_of(self.prepared.corpus, self.prepared.blocks_per_epoch),
            environment=hardware.recorded(self.team.size),
        )
        if self.start.state is not None:
            state.restore(self.start.state)
            if self.start.directory is None:
                state.counters.set_best(None)  # that is the parent's
            for key in ("model", "optimizer"):
                del self.start.state[key]  # copied: held, they would double the memory
        resumed = self.start.directory is not None or self.start.begins_again
        loggers = self._open_loggers(provenance, state.counters.step, resumed=resumed)
        replay = self._open_replay()
        loop = self._build_loop(state, provenance, loggers, replay)
        if self.team.is_first:
            announce.start(self.directory, self.start, self.prepared, hardware, self.team.size)
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
        if self.team.is_first:
            announce.end(self.directory, loop, stopped)
        manager = loop.saver.manager
        if manager is not None and manager.failed_step is not None:
            self._say_what_was_not_saved(manager.failed_step, stopped)
        return Outcome(stopped, state.counters.best_val_loss)

    def _build_state(self) -> TrainingState:
        """The state of a new run: everything random follows from the seed."""
        config, device = self.prepared.config, self.hardware.device
        seed_everything(config.seed)
        model = GPT2(config.model)
        if self.prepared.pretrained is not None:
            model.load_state_dict(self.prepared.pretrained.weights)
        model.to(device)
        if self._is_sharded:
            from gpt2ckpt.parallel.sharded import shard

            shard(model, device, self.team.size)
        optimizer = build_optimizer(config.optimizer, model, device.type)
        scaler = torch.amp.GradScaler(device.type, enabled=self.hardware.precision == "float16")
        counters = Counters()
        return TrainingState(model, optimizer, scaler, counters, self.team, self._is_sharded)

    @property
    def _is_sharded(self) -> bool:
        is_asked = self.prepared.config.trainer.parallel == FSDP
        return is_asked and isinstance(self.team, Group)

    def _build_loop(
        self, state: TrainingState, provenance: Provenance, loggers: Loggers, replay: ReplayCheck
    ) -> Loop:
        config, prepared = self.prepared.config, self.prepared
        manager, interrupts = self._open_manager(provenance.run.id), Interrupts()
        if isinstance(self.team, Group):
            interrupts = Interrupts(self.team.largest, self.team.lost_its_launcher)
        data_check = self._check_data(provenance)
        deadline = Deadline(config.checkpoint.grace_seconds, lambda: interrupts.asked_at)
        bar = self._open_bar(state.counters.step)
        stepper = self._build_stepper(state, manager, deadline, bar)
        tokens_per_step = prepared.blocks_per_step * config.model.block_size
        saver = Saver(
            *(state, manager, not config.checkpoint.enabled, provenance, prepared.schedule),
            *(prepared.total_steps, prepared.blocks_per_epoch, deadline, loggers),
            partial(data_check.wait, lambda: interrupts.is_asked_to_stop) if data_check else None,
            saves_best=config.checkpoint.enabled and config.checkpoint.save_best,
        )
        if self.team.is_first:
            interrupts.last_words = saver.last_words
        return Loop(
            state=state,
            stepper=stepper,
            schedule=prepared.schedule,
            total_steps=prepared.total_steps,
            blocks_per_epoch=prepared.blocks_per_epoch,
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
            interrupts=interrupts,
            team=self.team,
            last_blocks=self._blocks_of_last_step(),
            check_data=data_check.poll if data_check else None,
        )

    def _check_data(self, provenance: Provenance) -> DataCheck | None:
        """Begin to read large files whole, on the first rank: all ranks read the same files."""
        if not self.team.is_first:
            return None
        expected = self.prepared.expected_files
        return DataCheck(self.prepared.corpus, provenance.data, expected, self.start.state)

    def _peak_tokens_per_s(self) -> float | None:
        """What all ranks could train at the peak of their devices, if that is known."""
        hardware, model = self.hardware, self.prepared.config.model
        if hardware.device.type != "cuda":
            return None
        peak = peak_flops(hardware.name, hardware.precision)
        return None if peak is None else peak * self.team.size / count_flops_per_token(model)

    def _blocks_of_last_step(self) -> int:
        """By the config that the state was trained with: a resume may have another batch."""
        if self.start.state is None:
            return 0
        trainer = self.start.state["config"]["trainer"]
        return int(trainer["batch_size"]) * int(trainer["grad_accum"])

    def _build_stepper(
        self,
        state: TrainingState,
        manager: CheckpointManager | None,
        deadline: Deadline,
        bar: Progress,
    ) -> Stepper:
        config, trainer = self.prepared.config, self.prepared.config.trainer
        loader = BlockLoader(self.prepared.corpus.train, config.model.block_size, config.seed)
        replica, is_alone = self._replicate(state.model), isinstance(self.team, Alone)

        def gives_up(share_left: float) -> bool:
            save = manager.seconds_to_save() if manager is not None else None
            # Ranks give nothing up: they would have to agree within a step.
            return is_alone and not step_fits(
                share_left, deadline.step_seconds, save, deadline.left()
            )

        stepper = Stepper(
            *(replica.loss, loader, self.hardware),
            *(trainer.batch_size, trainer.grad_accum, trainer.grad_clip),
            *(self.team, replica.summing, self._reseeding()),
            *(trainer.spike_zscore, trainer.spike_window),
            *(gives_up, bar.part),
        )
        if isinstance(self.team, Group) and not self._is_sharded:
            stepper.rehearse(state)
        return stepper

    def _replicate(self, model: GPT2) -> Replica:
        """The loss to train with; on several ranks, one whose gradients are those of all."""
        if self._is_sharded:
            from gpt2ckpt.parallel.sharded import sharded

            return sharded(model)
        loss = torch.compile(model.loss) if self.prepared.config.trainer.compile else model.loss
        if isinstance(self.team, Alone):
            return Replica(loss, at_once)
        return data_parallel(model, loss, self.hardware.device)

    def _reseeding(self) -> Callable[[int], None] | None:
        """The first rank's generators are saved; those of the others follow from the step."""
        if self.team.is_first:
            return None
        return partial(seed_rank, self.prepared.config.seed, self.team.rank)

    def _open_replay(self) -> ReplayCheck:
        if not self.team.is_first:
            return ReplayCheck([])
        return ReplayCheck.of_run(self.directory / REPLAY, self.directory / HISTORY)

    def _open_bar(self, step: int) -> Progress:
        return open_progress(self.prepared.total_steps, step, shown=self.team.is_first)

    def _evaluate(self, model: GPT2, stop: Callable[[], bool]) -> Evaluation | None:
        """Validation loss over the same first blocks every time."""
        trainer, block_size = self.prepared.config.trainer, self.prepared.config.model.block_size
        val, blocks = self.prepared.corpus.val, trainer.eval_blocks
        batches = validation(val, block_size, trainer.batch_size, limit=blocks)
        evaluation = evaluate(model, batches, self.hardware, stop, self.team)
        return replace(evaluation, blocks=self._evaluated_blocks) if evaluation else None

    @cached_property
    def _evaluated_blocks(self) -> str:
        """A digest of the blocks of each evaluation."""
        config = self.prepared.config
        val, blocks = self.prepared.corpus.val, config.trainer.eval_blocks
        return validation_digest(val, config.model.block_size, blocks)

    def _build_sampler(self, model: GPT2) -> Sampler:
        trainer, seed = self.prepared.config.trainer, self.prepared.config.seed
        sampling = Sampling(trainer.sample_prompt, trainer.sample_tokens, seed)
        sampler = Sampler(model, sampling, self.hardware, self.team, is_sharded=self._is_sharded)
        if self.team.is_first and 0 < trainer.sample_every <= self.prepared.total_steps:
            sampler.load()
        return sampler

    def _open_manager(self, run: str) -> CheckpointManager | None:
        checkpoint = self.prepared.config.checkpoint
        if not (checkpoint.enabled and self.team.is_first):
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
        )
        manager.reserve(checkpoint_bytes(self.start, self.prepared.config))
        return manager

    def _reopen(self, provenance: Provenance, loggers: Loggers, step: int) -> Loggers:
        """After a rollback to `step`: as a resume from there would open them."""
        loggers = loggers.start_again(step, REOPEN_WAITS)
        if self.team.is_first:
            with contextlib.suppress(OSError):  # it only costs a resume a comparison
                (self.directory / REPLAY).unlink(missing_ok=True)
            self._add_loggers(loggers, provenance, step, resumed=True)
        return loggers

    def _open_loggers(self, provenance: Provenance, step: int, *, resumed: bool) -> Loggers:
        if not self.team.is_first:
            return Loggers(Nowhere())
        loggers = Loggers(metrics_file.MetricsFile(self.directory / HISTORY))
        self._add_loggers(loggers, provenance, step, resumed=resumed)
        return loggers

    def _add_loggers(
        self, loggers: Loggers, provenance: Provenance, step: int, *, resumed: bool
    ) -> None:
        config = self.prepared.config.logger
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

    def _say_what_was_not_saved(self, step: int, stopped: signal.Signals | None) -> None:
        """The last save failed: to go on means to go back. A finished run is not finished then."""
        command = announce.resume_command(self.directory, self.team.size)
        sentence = (
            f"the last save, at step {step}, failed, and an older one is the newest: free space "
            f"or mend {self.directory}, then {command}"
        )
        if not stopped:
            raise InputError(sentence)
        log.warning("%s", sentence)


def train_claimed(
    claim: Claim, start: Start, prepared: Prepared, hardware: Hardware, team: Team
) -> Outcome:
    """Train in the claimed directory, and release it."""
    with claim.lock:
        for line in [claim.notice, *start.notices()]:
            if line:
                log.info("%s", line)
        team.announce(str(claim.directory))
        return Session(claim.directory, start, prepared, hardware, team, claim.lock).run()
