"""Which states of a training are saved: finite ones, in time, by the rank that saves."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.best import Best
from gpt2ckpt.checkpoint.manager import CheckpointManager
from gpt2ckpt.checkpoint.policy import Retention, SaveRequest
from gpt2ckpt.checkpoint.state import ScheduleState
from gpt2ckpt.checkpoint.store import Found
from gpt2ckpt.config.schema import CheckpointConfig
from gpt2ckpt.loggers.fanout import Loggers
from gpt2ckpt.optim.schedule import Schedule
from gpt2ckpt.parallel.shared_checkpoint import agree_on_checkpoint
from gpt2ckpt.signals.deadline import Deadline, save_fits
from gpt2ckpt.training.anomalies import NonFiniteWeights
from gpt2ckpt.training.state import Provenance, TrainingState

log = logging.getLogger(__name__)


def retention_of(checkpoint: CheckpointConfig) -> Retention:
    """Return how many files of each pool a config keeps."""
    return Retention(checkpoint.keep_rolling, checkpoint.keep_emergency, checkpoint.keep_epochs)


@dataclass
class Saver:
    """Saves `state` when it is told to; with several ranks all are told alike.

    `manager` is None where this rank writes nothing: on all but the first, or with `is_off` on all.
    `verify_data` waits until the data is known to be that of the run, before a save that is no
    emergency; False if a stop is asked for first, and then an emergency save follows.
    `saves_best` is false where no best model is saved.
    """

    state: TrainingState
    manager: CheckpointManager | None
    is_off: bool
    provenance: Provenance
    schedule: Schedule
    total_steps: int
    blocks_per_epoch: int
    deadline: Deadline
    loggers: Loggers
    verify_data: Callable[[int], bool] | None = None
    saves_best: bool = True

    def save(
        self,
        reason: str,
        *,
        regular: bool = False,
        emergency: bool = False,
        best: bool = False,
        epoch_ended: int | None = None,
    ) -> None:
        """Save the state under the requested roles; without one, do nothing.

        Raises NonFiniteWeights if any rank has non-finite values, except for an emergency save,
        which a single rank may request.
        """
        if self.is_off or not (regular or emergency or best or epoch_ended is not None):
            return
        if not emergency and self._on_any_rank(not self._is_data_right()):
            return
        self.loggers.flush()
        counters = self.state.counters
        step = counters.step
        is_bad = not self.state.is_finite()
        if self.state.is_sharded or not emergency:
            is_bad = self._on_any_rank(is_bad)
        if is_bad:
            log.error("step %d is not saved: its weights are not finite; older files stay", step)
            if emergency:
                return
            raise NonFiniteWeights(
                f"the weights after step {step} are not finite: older checkpoints stay as they "
                "are. To go on: +resume=latest with a lower optimizer.lr, or with "
                "trainer.on_bad_loss=rollback, which skips the batches since that checkpoint"
            )
        if self.manager is None and not self.state.is_sharded:
            return
        if self.manager is not None and self.saves_best and not best:
            counters.set_best(self.manager.best())
        schedule = ScheduleState(self.total_steps, self.schedule(step))
        epoch = counters.epoch(self.blocks_per_epoch)
        state = self.state.capture(self.provenance, epoch, schedule, reason)
        request = SaveRequest(step, datetime.now(), regular, emergency, best, epoch_ended)
        if self.manager is not None:
            self.manager.save(state.to_dict(), request, self.loggers.sync)

    def save_emergency(self, reason: str) -> None:
        """Save the state beside the regular ones."""
        self.save(reason, emergency=True)

    def save_in_time(self, name: str) -> None:
        """An emergency save, unless it could not end before the deadline."""
        seconds = self.manager.seconds_to_save() if self.manager is not None else None
        if not self._shared(not save_fits(seconds, self.deadline.left())):
            self.save_emergency(name)
        else:
            words = "an emergency save would take about %.0f s and does not fit: %s"
            log.warning(words, seconds, self.newest_checkpoint_message())

    def save_emergency_or_log(self, reason: str) -> None:
        """An emergency save whose own failure does not hide the error that it is made for."""
        try:
            self.save_emergency(reason)
        except Exception as error:
            log.error("the emergency save failed: %s: %s", type(error).__name__, error)

    def newest_checkpoint_message(self) -> str:
        """What there is to go on from."""
        if self.manager is not None and self.manager.newest:
            return f"The newest checkpoint is {self.manager.newest}"
        if self.manager is not None and self.manager.is_writing:
            return "The first checkpoint is being written"
        return "There is no checkpoint yet"

    def has_failed(self) -> bool:
        """Whether the last save has, which is waited for."""
        return self._shared(self.manager is not None and not self.manager.wait())

    def best(self, evaluated_on: str) -> Best | None:
        """Return the best model so far, of those evaluated on the same blocks; None without one.

        It is what best_model.pt holds; where none is saved, the best that the state remembers. A
        meeting of all ranks.
        """
        counters = self.state.counters
        if not self.saves_best:
            return counters.best if counters.evaluated_on in (None, evaluated_on) else None
        found = self.manager.best(settled=True) if self.manager is not None else None
        if found is not None and not found.is_on(evaluated_on, self.provenance.data.digest):
            log.warning(
                "%s (step %d, val loss %.4f) was evaluated on other blocks: this evaluation sets a "
                "new best, and that file becomes %s",
                *(names.BEST, found.step, found.loss, names.BEST_PREVIOUS),
            )
            found = None
        told = self.state.group.broadcast(json.dumps([found.loss, found.step] if found else None))
        pair = json.loads(told)
        return Best(*pair) if pair else None

    def last_regular(self) -> Found | None:
        """Where to go back to, the same on all ranks."""
        found = self.manager.last_regular() if self.manager is not None else None
        return agree_on_checkpoint(found, self.state.group)

    def roll_back_to(self, found: Found) -> None:
        """Set aside all that was saved after `found`, which is now the latest."""
        if self.manager is not None:
            self.manager.roll_back_to(found)

    def close(self) -> None:
        """Wait for the last save."""
        if self.manager is not None:
            self.manager.close()

    def _shared(self, holds: bool) -> bool:
        """What holds for the rank that saves; of a sharded state all ranks save together."""
        return self._on_any_rank(holds) if self.state.is_sharded else holds

    def _is_data_right(self) -> bool:
        return self.verify_data is None or self.verify_data(self.state.counters.step)

    def _on_any_rank(self, holds: bool) -> bool:
        return bool(self.state.group.all_reduce_max([int(holds)])[0])
