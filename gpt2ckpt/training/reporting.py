"""Reports the steps of a run: metrics, log lines, the progress bar and text samples."""

import logging
import signal
import time
from dataclasses import asdict, dataclass, field

from gpt2ckpt import console
from gpt2ckpt.checkpoint.best import Best
from gpt2ckpt.checkpoint.event_sink import EventSink
from gpt2ckpt.checkpoint.state import LossSum
from gpt2ckpt.loggers.fanout import Loggers
from gpt2ckpt.signals.deadline import Deadline
from gpt2ckpt.training.console_format import eval_line, step_line, warning_lines
from gpt2ckpt.training.plan_warnings import time_warnings
from gpt2ckpt.training.progress import Progress
from gpt2ckpt.training.replay_check import ReplayCheck
from gpt2ckpt.training.state import TrainingState
from gpt2ckpt.training.step import StepResult
from gpt2ckpt.training.throughput import Meter
from gpt2ckpt.training.validate_run import ValidatedRun

log = logging.getLogger(__name__)

REOPEN_WAITS = 10.0  # seconds that a rollback waits until loggers are closed, to reopen them


@dataclass
class Reporter:
    """Reports each step and evaluation of a run, and measures the speed.

    Call `start` before the first step, `rewind` after each rollback, and `close` at the end. The
    reporter changes one part of the training state: it resets the sum of the unlogged losses.

    Attributes:
        state: The live training state.
        validated: The config and the length of the run.
        loggers: metrics.jsonl and the other loggers.
        events: Records what happens to the run.
        replay: Compares repeated steps with their first losses.
        meter: Measures speed and memory.
        bar: The progress bar.
        logged: The losses of the last logged mean.
    """

    state: TrainingState
    validated: ValidatedRun
    loggers: Loggers
    events: EventSink
    replay: ReplayCheck
    meter: Meter
    bar: Progress
    logged: LossSum = field(default_factory=LossSum, init=False)
    _recorded_signals: set[signal.Signals] = field(default_factory=set, init=False)

    def start(self) -> None:
        """Start to measure; announce the compilation of the model."""
        self.meter.start(self.state.counters.step)
        if self.validated.config.trainer.compile and self.state.group.is_first:
            log.info("compiling the model: the first step may take some minutes")
            self.bar.note("compiling")

    def rewind(self) -> None:
        """Remove what was logged after the step to which a rollback returned."""
        step = self.state.counters.step
        self.loggers.rewind(step, REOPEN_WAITS)
        self.replay = ReplayCheck([])
        self.meter.start(step)

    def log_step(self, result: StepResult, seconds: float) -> None:
        """Report a step and its duration in seconds; log a line every `log_every` steps."""
        step, total_steps = self.state.counters.step, self.validated.total_steps
        self.bar.update(step)
        self.meter.count(step)
        if self.meter.steps == 2:  # the first step takes longer than the others
            self._warn_of_long_training(seconds, total_steps - step)
        if replayed := self.replay.compare(step, result.loss):
            self.events.write("replay_verified", step, **asdict(replayed))
            self.replay.close()
            log.info("%s", replayed)
        if step % self.validated.config.trainer.log_every and step not in (1, total_steps):
            return
        counters, lr = self.state.counters, self.state.optimizer.lr
        speed = self.meter.measure(step, total_steps)
        self.logged, counters.unlogged = counters.unlogged, LossSum()
        self.loggers.log(
            {
                "step": step,
                "time": time.time(),
                "train_loss": result.loss,
                "train_loss_mean": self.logged.mean,
                "lr": lr,
                "grad_norm": result.grad_norm,
                "tokens_seen": counters.tokens_seen,
                "epoch": counters.epoch(self.validated.blocks_per_epoch),
                **speed.event(),
                **counters.anomalies.event(),
            }
        )
        line = step_line(
            step=step,
            total_steps=total_steps,
            loss=self.logged.mean,
            lr=lr,
            grad_norm=result.grad_norm,
            tokens_per_s=speed.tokens_per_s,
            seconds_left=speed.seconds_left,
        )
        log.info("%s", line)

    def log_evaluation(self, previous_best: Best | None, *, is_best: bool, seconds: float) -> None:
        """Report the evaluation in the counters, and its duration in seconds."""
        counters = self.state.counters
        assert counters.val_loss is not None
        event = {"step": counters.step, "time": time.time(), "val_loss": counters.val_loss}
        if counters.best_val_loss is not None:
            event["best_val_loss"] = counters.best_val_loss
        self.loggers.log({**event, "tokens_seen": counters.tokens_seen})
        self.events.write(
            "evaluated",
            counters.step,
            val_loss=counters.val_loss,
            is_best=is_best,
            best_val_loss=counters.best_val_loss,
            best_step=counters.best_step,
            seconds=seconds,
        )
        line = eval_line(
            step=counters.step,
            total_steps=self.validated.total_steps,
            val_loss=counters.val_loss,
            previous_best=previous_best,
            seconds=seconds,
        )
        log.info("%s", line)

    def log_sample(self, text: str) -> None:
        """Report a text sample."""
        text = console.printable(text)
        self.loggers.text(self.state.counters.step, text)
        log.info("sample: %s", text)

    def record_signal(self, received: signal.Signals) -> None:
        """Record a stopping signal, once even if several ranks receive it."""
        if received not in self._recorded_signals:
            self._recorded_signals.add(received)
            step = self.state.counters.step
            self.events.write("signal_received", step, signal=received.name)

    def close(self, seconds: float, deadline: Deadline) -> None:
        """Remove the bar and close the loggers, in at most `seconds` and before the deadline."""
        self.bar.close()
        left = deadline.left()
        self.loggers.close(seconds if left is None else max(0.0, min(seconds, left)))
        if verdict := self.replay.interrupted(self.state.counters.step):
            log.info("%s", verdict)

    def _warn_of_long_training(self, seconds: float, steps_left: int) -> None:
        warnings = time_warnings(seconds * steps_left, steps_left)
        for line in warning_lines(warnings) if self.state.group.is_first else ():
            log.warning("%s", line)
