"""The training loop: steps, and what is due between them."""

import logging
import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from gpt2ckpt import console
from gpt2ckpt.checkpoint.best import Best
from gpt2ckpt.checkpoint.event_sink import NO_EVENTS, EventSink
from gpt2ckpt.checkpoint.state import LossSum
from gpt2ckpt.config.schema import CheckpointConfig, TrainerConfig
from gpt2ckpt.loggers.fanout import Loggers
from gpt2ckpt.optim.schedule import Schedule
from gpt2ckpt.parallel.process_group import ProcessGroup, SingleProcess
from gpt2ckpt.signals.deadline import Deadline, StepAbandoned
from gpt2ckpt.signals.training import TrainingSignals, Watchdog
from gpt2ckpt.training.anomalies import LossSpike, TrainingAnomaly, summary_of
from gpt2ckpt.training.console_format import eval_line, step_line, warning_lines
from gpt2ckpt.training.data_check import DataChanged
from gpt2ckpt.training.evaluation import Evaluation
from gpt2ckpt.training.plan_warnings import time_warnings
from gpt2ckpt.training.progress import Progress
from gpt2ckpt.training.replay_check import ReplayCheck
from gpt2ckpt.training.rollback import resolve_anomaly, roll_back
from gpt2ckpt.training.saving import Saver
from gpt2ckpt.training.state import TrainingState
from gpt2ckpt.training.step import HalfApplied, Stepper, StepResult
from gpt2ckpt.training.throughput import Meter

log = logging.getLogger(__name__)


@dataclass
class Loop:
    """Trains `state` up to `total_steps` and keeps everybody informed.

    `evaluate` and `sample` get a function that tells whether to stop half-way; `sample` returns a
    text, or None on a rank that has none to show.
    `last_blocks` are those of the step after which the state was saved that it begins with.
    `check_data` raises DataChanged as soon as the data is known to be other data than the run's.
    `reopen` takes the history after a step away from loggers, and gives those to go on with.
    `logged` are the losses that the last logged mean is of.
    """

    state: TrainingState
    stepper: Stepper
    schedule: Schedule
    total_steps: int
    blocks_per_epoch: int
    tokens_per_step: int
    trainer: TrainerConfig
    checkpoint: CheckpointConfig
    saver: Saver
    loggers: Loggers
    replay: ReplayCheck
    meter: Meter
    bar: Progress
    evaluate: Callable[[Callable[[], bool]], Evaluation | None]
    sample: Callable[[Callable[[], bool]], str | None]
    reopen: Callable[[Loggers, int], Loggers]
    deadline: Deadline
    signals: TrainingSignals
    group: ProcessGroup = field(default_factory=SingleProcess)
    last_blocks: int = 0
    check_data: Callable[[], bool] | None = None
    events: EventSink = NO_EVENTS
    logged: LossSum = field(default_factory=LossSum)
    _epoch_seen: int = 0
    _is_over: bool = False
    _recorded_signals: set[signal.Signals] = field(default_factory=set)

    def run(self) -> signal.Signals | None:
        """Train to the end. Returns the signal that stopped it, or None when finished.

        On an exception the last whole state is saved as an emergency checkpoint, and it is raised.
        """
        answer = self._acknowledgement if self.group.is_first else None
        with self.signals, Watchdog(self.signals, self.checkpoint.grace_seconds, answer):
            try:
                self._train()
                self._is_over = True
                stopped = self.signals.stop  # one that comes later meets a finished training
                if stopped:
                    self._record_signal(stopped)
                    log.info("%s: stopped after step %d", stopped.name, self.state.counters.step)
                    self.saver.save_in_time(stopped.name)
                elif self.saver.has_failed():
                    self.saver.save_emergency("the last save failed")  # space is kept for this one
            except (HalfApplied, DataChanged):
                raise  # the state is not one to resume from
            except BaseException as error:
                cause = self.group.explain_error(error)
                log.error("stopped after step %d: %s", self.state.counters.step, cause)
                if self.state.is_sharded and not isinstance(error, TrainingAnomaly):
                    log.error("no emergency save: other ranks may not have their parts any more")
                else:
                    self.saver.save_emergency_or_log(f"{type(cause).__name__}: {cause}")
                raise
            finally:
                self.saver.close()
        return stopped

    def _acknowledgement(self, received: signal.Signals) -> str:
        """Return what a first stopping signal leads to, and what a second one does."""
        self._record_signal(received)
        if self._is_over:
            return "the training has ended, and waits for its last save"
        then = "stopping" if self.saver.is_off else "saving"
        again = "press again" if received is signal.SIGINT else f"a second {received.name}"
        to_stop = "to stop" if received is signal.SIGINT else "stops"
        return f"finishing this step, then {then}; {again} {to_stop} without saving"

    def _record_signal(self, received: signal.Signals) -> None:
        """Record a stopping signal once; one that only another rank received is recorded too."""
        if received not in self._recorded_signals:
            self._recorded_signals.add(received)
            step = self.state.counters.step
            self.events.write("signal_received", step, signal=received.name)

    @property
    def epoch(self) -> int:
        """Full passes over the data so far."""
        return self.state.counters.epoch(self.blocks_per_epoch)

    def _train(self) -> None:
        counters = self.state.counters
        if counters.step > 0 and self._evaluation_is_due():
            self._epoch_seen = (counters.position - self.last_blocks) // self.blocks_per_epoch
            self._between_steps()  # an earlier process was stopped before it
        self._epoch_seen = self.epoch
        self.meter.start(counters.step)
        # Compiling takes minutes, which a step of nothing yet is not worth waiting for.
        self.signals.exits_immediately = self.trainer.compile
        if self.trainer.compile and self.group.is_first:
            log.info("compiling the model: the first step takes up to some minutes")
            self.bar.note("compiling")
        while self.state.counters.step < self.total_steps and not self.signals.agree():
            try:
                self._log_step(self._step())
                self.signals.exits_immediately = False
                if self.check_data is not None:
                    self.check_data()
                self._between_steps()
            except TrainingAnomaly as bad:
                self._handle_anomaly(bad)
            except StepAbandoned:
                log.warning("the step is given up: it would not end in time")
                return

    def _handle_anomaly(self, bad: TrainingAnomaly) -> None:
        """Skip the batch or roll back, as the policy says; else raise `bad`."""
        counters, before = self.state.counters, self.state.counters.step
        first_block, reason = counters.position, summary_of(bad)
        if isinstance(bad, LossSpike):
            self.events.write("loss_spike", before, loss=bad.loss, reason=reason)
        found = resolve_anomaly(
            bad, self.state, self.trainer, self.stepper.blocks, self.saver.last_regular
        )
        if found is None:
            blocks = [first_block, counters.position - 1]
            self.events.write("batch_skipped", before, blocks=blocks, reason=reason)
        else:
            roll_back(self.state, found)
            step, self._epoch_seen = self.state.counters.step, self.epoch
            file = found.path.name
            self.events.write("rolled_back", step, from_step=before, file=file, reason=reason)
            self.saver.roll_back_to(found)
            self.loggers = self.saver.loggers = self.reopen(self.loggers, step)
            self.replay = ReplayCheck([])
            self.meter.start(step)

    def _step(self) -> StepResult:
        counters = self.state.counters
        self.state.optimizer.set_lr_scale(self.schedule(counters.step))
        position = 0 if self.trainer.overfit else counters.position
        begun = time.monotonic()
        result = self.stepper.step(self.state, position)
        self.deadline.step_seconds = time.monotonic() - begun
        counters.step += 1
        counters.position += self.stepper.blocks
        counters.tokens_seen += self.tokens_per_step
        counters.train_loss = result.loss
        counters.unlogged.add(result.loss)
        window = self.trainer.spike_window if self.trainer.spike_zscore is not None else 0
        counters.anomalies.accept(result.loss, window)
        return result

    def _log_step(self, result: StepResult) -> None:
        step = self.state.counters.step
        self.bar.update(step)
        self.meter.count(step)
        if self.meter.steps == 2:  # the first is not like the others
            self._warn_of_months(step)
        if verdict := self.replay.compare(step, result.loss):
            self.events.write("replay_verified", step, **asdict(verdict))
            self.replay.close()
            log.info("%s", verdict)
        if step % self.trainer.log_every and step not in (1, self.total_steps):
            return
        speed = self.meter.measure(step, self.total_steps)
        lr = self.state.optimizer.lr
        self.logged, self.state.counters.unlogged = self.state.counters.unlogged, LossSum()
        self.loggers.log(
            {
                "step": step,
                "time": time.time(),
                "train_loss": result.loss,
                "train_loss_mean": self.logged.mean,
                "lr": lr,
                "grad_norm": result.grad_norm,
                "tokens_seen": self.state.counters.tokens_seen,
                "epoch": self.epoch,
                **speed.event(),
                **self.state.counters.anomalies.event(),
            }
        )
        line = step_line(
            step=step,
            total_steps=self.total_steps,
            loss=self.logged.mean,
            lr=lr,
            grad_norm=result.grad_norm,
            tokens_per_s=speed.tokens_per_s,
            seconds_left=speed.seconds_left,
        )
        log.info("%s", line)

    def _warn_of_months(self, step: int) -> None:
        left = self.total_steps - step
        warnings = time_warnings(self.deadline.step_seconds * left, left)
        for line in warning_lines(warnings) if self.group.is_first else ():
            log.warning("%s", line)

    def _between_steps(self) -> None:
        """Evaluate, sample and save, whichever is due after this step."""
        with self.meter.paused():
            step = self.state.counters.step
            is_best = self._evaluation_is_due() and self._evaluate()
            if self._evaluation_is_due():
                return  # it was interrupted: the resumed run makes it, and what comes after it
            if _is_due(step, self.trainer.sample_every) and not self.signals.stop:
                self._sample()
            is_last = step == self.total_steps
            self.saver.save(
                "final" if is_last else "regular",
                regular=_is_due(step, self.checkpoint.save_every) or is_last,
                best=is_best and self.checkpoint.save_best,
                epoch_ended=self._epoch_ended() if self.checkpoint.save_epochs else None,
            )
            if self.signals.take_save_request():
                self.events.write("signal_received", step, signal=signal.SIGUSR1.name)
                self.saver.save_emergency("SIGUSR1")
                self.signals.call_previous_handlers()

    def _epoch_ended(self) -> int | None:
        before, self._epoch_seen = self._epoch_seen, self.epoch
        return self.epoch - 1 if self.epoch > before else None

    def _evaluation_is_due(self) -> bool:
        counters, every = self.state.counters, self.trainer.eval_every
        due = _is_due(counters.step, every) or (every > 0 and counters.step == self.total_steps)
        return due and counters.evaluated_step != counters.step

    def _evaluate(self) -> bool:
        """Evaluate; whether the loss is the best so far."""
        counters, start = self.state.counters, time.perf_counter()
        self.bar.note("evaluating")
        evaluation = self.evaluate(lambda: self.signals.agree() is not None)
        if evaluation is None:
            return False
        best = self.saver.best(evaluation.blocks)
        is_best = math.isfinite(evaluation.loss) and (best is None or evaluation.loss < best.loss)
        counters.evaluated_step, counters.evaluated_on = counters.step, evaluation.blocks
        counters.val_loss = evaluation.loss
        counters.set_best(Best(evaluation.loss, counters.step) if is_best else best)
        self.loggers.log(
            {
                "step": counters.step,
                "time": time.time(),
                "val_loss": evaluation.loss,
                **(
                    {}
                    if counters.best_val_loss is None
                    else {"best_val_loss": counters.best_val_loss}
                ),
                "tokens_seen": counters.tokens_seen,
            }
        )
        seconds = time.perf_counter() - start
        self.events.write(
            "evaluated",
            counters.step,
            val_loss=evaluation.loss,
            is_best=is_best,
            best_val_loss=counters.best_val_loss,
            best_step=counters.best_step,
            seconds=seconds,
        )
        before = (best.loss, best.step) if best else None
        line = eval_line(counters.step, self.total_steps, evaluation.loss, before, seconds)
        log.info("%s", line)
        return is_best

    def _sample(self) -> None:
        self.bar.note("sampling")
        text = self.sample(lambda: self.signals.stop_requested)
        if text and not self.signals.stop_requested:  # half a text is none
            text = console.printable(text)
            self.loggers.text(self.state.counters.step, text)
            log.info("sample: %s", text)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
