"""The training loop: steps, and the evaluations, samples and saves that are due between them."""

import logging
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gpt2ckpt.checkpoint.best import Best
from gpt2ckpt.signals.deadline import StepAbandoned
from gpt2ckpt.signals.host import StoppedUnsaved
from gpt2ckpt.signals.training import TrainingSignals, Watchdog
from gpt2ckpt.training.anomalies import (
    LossSpike,
    TrainingAnomaly,
    resolve_anomaly,
    roll_back,
    summary_of,
)
from gpt2ckpt.training.callbacks import Callbacks
from gpt2ckpt.training.data_check import DataChanged
from gpt2ckpt.training.evaluation import Evaluation
from gpt2ckpt.training.reporting import Reporter
from gpt2ckpt.training.save_schedule import is_due, save_due
from gpt2ckpt.training.saving import Saver
from gpt2ckpt.training.state import TrainingState
from gpt2ckpt.training.step import HalfApplied, Stepper, StepResult

log = logging.getLogger(__name__)


@dataclass
class Loop:
    """Trains until the last step of the run or until a signal. Call `run` once.

    After each step, the loop evaluates, samples and saves, whichever is due. After a stopping
    signal, it finishes the step in progress and saves an emergency checkpoint. When a callback asks
    for the end, it evaluates and saves as after the last step. On an exception, the last consistent
    state is saved as an emergency checkpoint before the exception is raised. With several ranks,
    the loops of all ranks make the same decisions.

    Attributes:
        state: The live training state.
        stepper: Makes the optimizer steps.
        saver: Saves the state; holds the config and the length of the run.
        reporter: Reports steps, evaluations and samples.
        evaluate: Takes a function that returns whether to stop. Returns the evaluation, or None if
            it was stopped.
        sample: Takes the same function. Returns a text sample, or None if this rank shows none.
        signals: The signal handlers, installed while the loop runs.
    """

    state: TrainingState
    stepper: Stepper
    saver: Saver
    reporter: Reporter
    evaluate: Callable[[Callable[[], bool]], Evaluation | None]
    sample: Callable[[Callable[[], bool]], str | None]
    signals: TrainingSignals
    _epoch_seen: int = field(default=0, init=False)
    _has_finished: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.validated = self.saver.validated
        self.trainer = self.validated.config.trainer
        self.checkpoint = self.validated.config.checkpoint

    @property
    def callbacks(self) -> Callbacks:
        """The callbacks, whose states are saved."""
        return self.validated.callbacks

    def run(self) -> signal.Signals | None:
        """Train; return the signal that stopped the loop, or None after the last step."""
        answer = self._acknowledgement if self.state.group.is_first else None
        with self.signals, Watchdog(self.signals, self.checkpoint.grace_seconds, answer):
            try:
                self._train()
                self._has_finished = True
                stopped = self.signals.stop  # a later signal does not change the outcome
                if stopped:
                    self.reporter.record_signal(stopped)
                    log.info("%s: stopped after step %d", stopped.name, self.state.counters.step)
                    self.saver.save_in_time(stopped.name)
                elif self.saver.has_failed():
                    # Disk space is reserved for an emergency save.
                    self.saver.save_emergency("the last save failed")
            except (HalfApplied, DataChanged, StoppedUnsaved):
                raise  # the state must not be resumed, or the user does not wait for a save
            except BaseException as error:
                self._save_after(error)
                raise
            finally:
                self.saver.close()
                self.callbacks.report_saves()
                self.callbacks.call("on_run_end")
        return stopped

    def _save_after(self, error: BaseException) -> None:
        cause = self.state.group.explain_error(error)
        log.error("stopped after step %d: %s", self.state.counters.step, cause)
        if self.state.is_sharded and not isinstance(error, TrainingAnomaly):
            log.error(
                "no emergency save: the shards of other ranks may be lost. Resume from the newest "
                "checkpoint with +resume=latest"
            )
        else:
            self.saver.save_emergency_or_log(f"{type(cause).__name__}: {cause}")

    def _acknowledgement(self, received: signal.Signals) -> str:
        """Record the first stopping signal; return what follows, and what a second one does."""
        self.reporter.record_signal(received)
        if self._has_finished:
            return "training has ended; waiting for the last save"
        then = "saving" if self.checkpoint.enabled else "stopping"
        again = "press again" if received is signal.SIGINT else f"a second {received.name}"
        to_stop = "to stop" if received is signal.SIGINT else "stops"
        return f"finishing this step, then {then}; {again} {to_stop} without saving"

    @property
    def _epoch(self) -> int:
        return self.state.counters.epoch(self.validated.blocks_per_epoch)

    def _train(self) -> None:
        self.callbacks.call("on_run_start")
        counters = self.state.counters
        if counters.step > 0 and self._evaluation_is_due():
            # The previous process stopped before this evaluation was complete.
            before = counters.position - self.validated.done.blocks_of_last_step
            self._epoch_seen = before // self.validated.blocks_per_epoch
            self._between_steps()
        self._epoch_seen = self._epoch
        # Compilation takes minutes, and a signal during it loses no progress.
        self.signals.exits_immediately = self.trainer.compile
        self.reporter.start()
        while self.state.counters.step < self.validated.total_steps and not self.signals.agree():
            try:
                if self.signals.ends_early:
                    self._end_early()
                    return
                result, seconds = self._step()
                self.reporter.log_step(result, seconds)
                self.signals.exits_immediately = False
                self.saver.check_data()
                self.callbacks.report_saves()
                self.callbacks.call("on_step_end", self._metrics(result, seconds))
                self._between_steps()
            except TrainingAnomaly as anomaly:
                self._handle_anomaly(anomaly)
            except StepAbandoned:
                log.warning(
                    "the step is abandoned: it would not end within checkpoint.grace_seconds=%s",
                    self.checkpoint.grace_seconds,
                )
                return

    def _handle_anomaly(self, anomaly: TrainingAnomaly) -> None:
        """Skip the batch or roll back, as trainer.on_bad_loss requests; else raise `anomaly`."""
        events, step = self.reporter.events, self.state.counters.step
        first_block, reason = self.state.counters.position, summary_of(anomaly)
        if isinstance(anomaly, LossSpike):
            events.write("loss_spike", step, loss=anomaly.loss, reason=reason)
        found = resolve_anomaly(
            anomaly, self.state, self.trainer, self.stepper.blocks, self.saver.last_regular
        )
        if found is None:
            blocks = [first_block, self.state.counters.position - 1]
            events.write("batch_skipped", step, blocks=blocks, reason=reason)
            return
        roll_back(self.state, found)
        self.callbacks.roll_back(found.state.callbacks or {})
        self._epoch_seen = self._epoch
        events.write(
            "rolled_back",
            self.state.counters.step,
            from_step=step,
            file=found.path.name,
            reason=reason,
        )
        self.saver.roll_back_to(found)
        self.reporter.rewind()

    def _step(self) -> tuple[StepResult, float]:
        """Make one step and count it; return its result and its duration in seconds."""
        counters = self.state.counters
        self.state.optimizer.set_lr_scale(self.validated.schedule(counters.step))
        position = 0 if self.trainer.overfit else counters.position
        start = time.monotonic()
        result = self.stepper.step(self.state, position)
        seconds = self.saver.deadline.step_seconds = time.monotonic() - start
        counters.step += 1
        counters.position += self.stepper.blocks
        counters.tokens_seen += self.validated.tokens_per_step
        counters.train_loss = result.loss
        counters.unlogged.add(result.loss)
        window = self.trainer.spike_window if self.trainer.spike_zscore is not None else 0
        counters.anomalies.accept(result.loss, window)
        return result, seconds

    def _between_steps(self) -> None:
        """Evaluate, sample and save, whichever is due after this step."""
        with self.reporter.meter.paused():
            step = self.state.counters.step
            is_best = self._evaluation_is_due() and self._evaluate()
            if self._evaluation_is_due():
                return  # interrupted: a resume repeats the evaluation, then samples and saves
            if is_due(step, self.trainer.sample_every) and not self.signals.stop:
                self._sample()
            self._save(is_best=is_best)
            if self.signals.take_save_request():
                name = signal.SIGUSR1.name
                self.reporter.events.write("signal_received", step, signal=name)
                self.saver.save_emergency(name)
                self.signals.call_previous_handlers()

    @property
    def _last_step(self) -> int:
        """The last step of the run: this one, if the ranks agreed to end early."""
        is_over = self.signals.ends_early
        return self.state.counters.step if is_over else self.validated.total_steps

    def _save(self, *, is_best: bool) -> None:
        due = save_due(
            self.checkpoint,
            self.state.counters.step,
            self._last_step,
            is_best=is_best,
            epoch_ended=self._epoch_ended(),
        )
        self.saver.save(due.reason, regular=due.regular, best=due.best, epoch_ended=due.epoch_ended)

    def _end_early(self) -> None:
        """Evaluate and save as after the last step, since a callback requested the end."""
        self.signals.exits_immediately = False
        if by := self.callbacks.stopped_by:  # on the first rank
            step = self.state.counters.step
            log.info("callback '%s' ended the run after step %d: %s", by.callback, step, by.reason)
        with self.reporter.meter.paused():
            is_best = self._evaluation_is_due() and self._evaluate()
            if self._evaluation_is_due():
                return  # interrupted: a resume repeats the evaluation, and ends
            self._save(is_best=is_best)

    def _metrics(self, result: StepResult, seconds: float) -> dict[str, float]:
        """Return the metrics of a step for hooks, by their names in metrics.jsonl."""
        return {
            "train_loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": self.state.optimizer.lr,
            "tokens_seen": self.state.counters.tokens_seen,
            "epoch": self._epoch,
            "seconds": seconds,
        }

    def _epoch_ended(self) -> int | None:
        before, self._epoch_seen = self._epoch_seen, self._epoch
        return self._epoch - 1 if self._epoch > before else None

    def _evaluation_is_due(self) -> bool:
        step, every = self.state.counters.step, self.trainer.eval_every
        is_last = every > 0 and step == self._last_step
        return (is_last or is_due(step, every)) and self.state.counters.evaluated_step != step

    def _evaluate(self) -> bool:
        """Evaluate the model; return whether the loss is the best so far."""
        counters, start = self.state.counters, time.perf_counter()
        self.reporter.bar.note("evaluating")
        evaluation = self.evaluate(lambda: self.signals.agree() is not None)
        if evaluation is None:
            return False
        best = self.saver.best(evaluation.blocks)
        is_best = math.isfinite(evaluation.loss) and (best is None or evaluation.loss < best.loss)
        counters.evaluated_step, counters.evaluated_on = counters.step, evaluation.blocks
        counters.val_loss = evaluation.loss
        counters.set_best(Best(evaluation.loss, counters.step) if is_best else best)
        seconds = time.perf_counter() - start
        self.reporter.log_evaluation(best, is_best=is_best, seconds=seconds)
        metrics = {"val_loss": evaluation.loss, "is_best": is_best, "seconds": seconds}
        self.callbacks.call("on_evaluation_end", metrics)
        return is_best

    def _sample(self) -> None:
        self.reporter.bar.note("sampling")
        text = self.sample(lambda: self.signals.stop_requested)
        if text and not self.signals.stop_requested:  # an interrupted sample is incomplete
            self.reporter.log_sample(text)
