"""Saves the training state: decides whether it may be saved, in which roles, and by which rank."""

import json
import logging
from dataclasses import dataclass
from datetime import datetime

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.best import Best
from gpt2ckpt.checkpoint.manager import CheckpointManager
from gpt2ckpt.checkpoint.newest_valid import Found
from gpt2ckpt.checkpoint.retention import Retention, SaveRequest
from gpt2ckpt.checkpoint.state import ScheduleState
from gpt2ckpt.config.options import PluginError
from gpt2ckpt.config.schema import CheckpointConfig
from gpt2ckpt.loggers.fanout import Loggers
from gpt2ckpt.parallel.process_group import SingleProcess
from gpt2ckpt.parallel.shared_checkpoint import agree_on_checkpoint
from gpt2ckpt.signals.deadline import Deadline, save_fits, step_fits
from gpt2ckpt.training.anomalies import NonFiniteWeights
from gpt2ckpt.training.data_check import DataCheck
from gpt2ckpt.training.state import Provenance, TrainingState
from gpt2ckpt.training.validate_run import ValidatedRun

log = logging.getLogger(__name__)


def retention_of(checkpoint: CheckpointConfig) -> Retention:
    """Return how many rolling, emergency and epoch checkpoints a config keeps."""
    return Retention(checkpoint.keep_rolling, checkpoint.keep_emergency, checkpoint.keep_epochs)


@dataclass
class Saver:
    """Saves the training state on request; with several ranks, all ranks make the same requests.

    A state with non-finite values is never saved. A regular save waits until the data is verified.
    A failed save does not raise; `has_failed` reports it.

    Attributes:
        state: The live training state.
        validated: The config and the length of the run.
        provenance: The parts of a checkpoint that stay the same over this process.
        manager: Writes the checkpoint files. None on all ranks but the first, and with
            checkpoint.enabled=false.
        loggers: Flushed before each save, so that a checkpoint is never ahead of metrics.jsonl.
        deadline: The time that is left after a stopping signal.
        data_check: Verifies the data in the background; None on all ranks but the first.
    """

    state: TrainingState
    validated: ValidatedRun
    provenance: Provenance
    manager: CheckpointManager | None
    loggers: Loggers
    deadline: Deadline
    data_check: DataCheck | None = None

    @property
    def config(self) -> CheckpointConfig:
        """Return the checkpoint group of the config."""
        return self.validated.config.checkpoint

    def save(
        self,
        reason: str,
        *,
        regular: bool = False,
        emergency: bool = False,
        best: bool = False,
        epoch_ended: int | None = None,
    ) -> None:
        """Save the state in the requested roles; without a role, do nothing.

        Args:
            reason: Recorded in the checkpoint, e.g. the name of a signal.
            regular: Save a rolling checkpoint.
            emergency: Save an emergency checkpoint. A single rank may request it.
            best: Save the best model.
            epoch_ended: Save an epoch checkpoint of this epoch, counted from 0.

        Raises:
            NonFiniteWeights: The state of a rank has non-finite values. An emergency save logs this
                as an error instead, and saves nothing.
        """
        if not self.config.enabled or not (regular or emergency or best or epoch_ended is not None):
            return
        if not emergency and self._on_any_rank(not self._wait_for_data()):
            return  # a stop was requested: an emergency save follows
        self.loggers.flush()
        counters = self.state.counters
        step = counters.step
        is_non_finite = not self.state.is_finite()
        if self.state.is_sharded or not emergency:
            is_non_finite = self._on_any_rank(is_non_finite)
        if is_non_finite:
            log.error(
                "step %d is not saved: its weights are not finite. Older checkpoints are kept", step
            )
            if emergency:
                return
            raise NonFiniteWeights(
                f"the weights after step {step} are not finite: older checkpoints are kept. Resume "
                "with +resume=latest and a lower optimizer.lr, or with "
                "trainer.on_bad_loss=rollback, which skips the batches since that checkpoint"
            )
        if self.manager is None and not self.state.is_sharded:
            return
        if self.manager is not None and self.config.save_best and not best:
            counters.set_best(self.manager.best())
        validated = self.validated
        try:
            scale = validated.schedule(step)
        except PluginError:  # which ends the run: it must not prevent the emergency checkpoint
            scale = self.state.optimizer.lr_scale
        schedule = ScheduleState(validated.total_steps, scale)
        epoch = counters.epoch(validated.blocks_per_epoch)
        state = self.state.capture(
            self.provenance, epoch, schedule, reason, callbacks=validated.callbacks
        )
        request = SaveRequest(step, datetime.now(), regular, emergency, best, epoch_ended)
        if self.manager is not None:
            self.manager.save(state.to_dict(), request, self.loggers.sync)

    def save_emergency(self, reason: str) -> None:
        """Save an emergency checkpoint, beside the regular ones."""
        self.save(reason, emergency=True)

    def save_in_time(self, name: str) -> None:
        """Save an emergency checkpoint, or log that the save would not end before the deadline."""
        seconds = self.manager.seconds_to_save() if self.manager is not None else None
        if not self._on_saving_ranks(not save_fits(seconds, self.deadline.left())):
            self.save_emergency(name)
        else:
            message = "no emergency save: it would take about %.0f s, longer than the time left. %s"
            log.warning(message, seconds, self.newest_checkpoint_message())

    def save_emergency_or_log(self, reason: str) -> None:
        """Save an emergency checkpoint; log an error instead of raising it."""
        try:
            self.save_emergency(reason)
        except Exception as error:
            log.error("the emergency save failed: %s: %s", type(error).__name__, error)

    def newest_checkpoint_message(self) -> str:
        """Return, as a message, the checkpoint that a resume would take."""
        if self.manager is not None and self.manager.newest:
            return f"The newest checkpoint is {self.manager.newest}"
        if self.manager is not None and self.manager.is_writing:
            return "The first checkpoint is being written"
        return "There is no checkpoint yet"

    def has_failed(self) -> bool:
        """Wait for the last save; return whether it failed."""
        return self._on_saving_ranks(self.manager is not None and not self.manager.wait())

    def best(self, evaluated_on: str) -> Best | None:
        """Return the best earlier evaluation on the same token blocks; None without one.

        With save_best, best_model.pt records this evaluation; otherwise, the training state does.
        All ranks must call this together.

        Args:
            evaluated_on: The digest of the token blocks of the present evaluation.
        """
        counters = self.state.counters
        if not (self.config.enabled and self.config.save_best):
            return counters.best if counters.evaluated_on in (None, evaluated_on) else None
        found = self.manager.best(settled=True) if self.manager is not None else None
        if found is not None and not found.is_on(evaluated_on, self.provenance.data.digest):
            log.warning(
                "%s (step %d, val loss %.4f) was evaluated on different validation blocks: the "
                "present evaluation is the new best, and the older file becomes %s",
                names.BEST,
                found.step,
                found.loss,
                names.BEST_PREVIOUS,
            )
            found = None
        message = json.dumps([found.loss, found.step] if found else None)
        pair = json.loads(self.state.group.broadcast(message))
        return Best(*pair) if pair else None

    def last_regular(self) -> Found | None:
        """Return the checkpoint that a rollback returns to, the same on all ranks."""
        found = self.manager.last_regular() if self.manager is not None else None
        return agree_on_checkpoint(found, self.state.group)

    def roll_back_to(self, found: Found) -> None:
        """Archive the checkpoints saved after `found`, which becomes the latest."""
        if self.manager is not None:
            self.manager.roll_back_to(found)

    def close(self) -> None:
        """Wait for the last save."""
        if self.manager is not None:
            self.manager.close()

    def check_data(self) -> None:
        """Raise DataChanged if the data is already known to differ from that of the checkpoint."""
        if self.data_check is not None:
            self.data_check.poll()

    def should_abandon_step(self, fraction_left: float) -> bool:
        """Return whether the rest of a step and a save after it would miss the deadline.

        With several ranks it returns false: the ranks would have to agree during the step.
        """
        save = self.manager.seconds_to_save() if self.manager is not None else None
        return isinstance(self.state.group, SingleProcess) and not step_fits(
            fraction_left, self.deadline.step_seconds, save, self.deadline.left()
        )

    def _wait_for_data(self) -> bool:
        if self.data_check is None:
            return True
        return self.data_check.wait(self._is_stopping, self.state.counters.step)

    def _is_stopping(self) -> bool:
        return self.deadline.stop_requested_at() is not None

    def _on_saving_ranks(self, value: bool) -> bool:
        """Return the value of the rank that saves; all ranks of a sharded state save together."""
        return self._on_any_rank(value) if self.state.is_sharded else value

    def _on_any_rank(self, value: bool) -> bool:
        return bool(self.state.group.all_reduce_max([int(value)])[0])
