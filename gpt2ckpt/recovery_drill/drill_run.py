"""Runs the drill: kills and resumes a run, and compares it with a run without a kill."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gpt2ckpt.checkpoint.names import LATEST
from gpt2ckpt.checkpoint.reading import check, compare_tensors, read_head
from gpt2ckpt.config.earlier import in_blocks
from gpt2ckpt.config.replay import Values
from gpt2ckpt.errors import InputError
from gpt2ckpt.recovery_drill.filesystem_checks import FileSystem
from gpt2ckpt.recovery_drill.results import (
    Cost,
    DrillResult,
    Kill,
    Recovery,
    Settings,
    differing_losses,
    differing_state,
)
from gpt2ckpt.recovery_drill.training_process import TrainingRun

MAX_SAVES = 200  # after which a training run ends if it could not be killed during a save
EVAL_BLOCKS = 16
MARGIN = 1.2  # the time between two measured saves, as a multiple of the time of a save


@dataclass(frozen=True)
class DrillRun:
    """A drill with the settings of a real run.

    Args:
        overrides: the overrides of the real run.
        values: the composed config of the real run.
        settings: the settings of the real run that determine its costs.
        scratch: the folder of the drill.
        steps: the least number of steps that the drill trains.
        tokens_per_step: tokens of one optimizer step.
        report: prints a line of progress.
    """

    overrides: list[str]
    values: Values
    settings: Settings
    scratch: Path
    steps: int
    tokens_per_step: int
    report: Callable[[str], None]

    def run(self, file_system: FileSystem) -> DrillResult:
        """Train, kill, resume and compare; `file_system` is the result of `examine`.

        Raises:
            ConfigError, InputError: the error of a training run that failed.
        """
        killed = self._training_run("killed")
        every = max(1, self.steps // 4)
        writing = killed.kill_in_save(
            f"trainer.max_steps={every * MAX_SAVES}",
            f"checkpoint.save_every={every}",
            *self._evaluations(every),
        )
        before = max((logged["step"] for logged in killed.logged_steps()), default=0)
        self.report(f"killed a run (SIGKILL) at step {before} while it wrote {writing}")
        steps = self._length(killed, before, every)
        more = (f"trainer.max_steps={steps}", f"checkpoint.save_every={every}")
        started = killed.train_to_end("+resume=latest", *more, *self._evaluations(every))
        resumed = _resumed_event(killed)["step"]
        self.report(f"resumed the run from step {resumed} and trained it to step {steps}")
        reference = self._training_run("reference")
        reference.train_to_end(
            f"trainer.max_steps={steps}",
            f"checkpoint.save_every={max(1, steps // 3)}",
            # The states of callbacks depend on the evaluations; without any, one is enough.
            *self._evaluations(every if self.values.get("callback") else steps),
        )
        self.report(f"trained a reference run of {steps} steps without a kill")
        first = next(logged for logged in killed.logged_steps() if logged["step"] > resumed)
        recovery = _compare(killed, reference, Kill(writing, before, resumed), steps)
        cost = self._measure(reference, first["time"] - started)
        return DrillResult(self.settings, file_system, recovery, cost)

    def _training_run(self, name: str) -> TrainingRun:
        common = _common_overrides(self.values, self.settings.total_steps)
        return TrainingRun([*self.overrides, *common], self.scratch / name, self.settings.ranks)

    def _evaluations(self, every: int) -> tuple[str, ...]:
        trainer = self.values["trainer"]
        blocks = min(in_blocks(self.values)["trainer"]["eval_blocks"], EVAL_BLOCKS)
        wanted = every if trainer["eval_every"] else 0
        return (
            f"trainer.eval_every={wanted}",
            f"trainer.eval_blocks={blocks}",
            "trainer.eval_steps=null",
        )

    def _length(self, killed: TrainingRun, before: int, every: int) -> int:
        """Return a length beyond the kill, and enough for three saves that do not overlap."""
        saves = killed.events("checkpoint_saved")
        slowest = max((save["seconds"] for save in saves), default=0.0)
        gap = int(MARGIN * slowest / _step_seconds(killed, self.tokens_per_step)) + 1
        return max(self.steps, before + every, 3 * gap)

    def _measure(self, run: TrainingRun, restart: float) -> Cost:
        saves = run.events("checkpoint_saved")
        if len(saves) < 3:
            raise InputError(
                f"a run of the drill saved fewer than three times, so saves cannot be measured: "
                f"see {run.output}"
            )
        return Cost(
            step=_step_seconds(run, self.tokens_per_step),
            first_stall=saves[0]["stall_seconds"],
            stall=saves[1]["stall_seconds"],
            durable_after=saves[1]["seconds"],
            restart=restart,
            size=(run.checkpoints / LATEST).stat().st_size,
            free=_free(self.scratch),
        )


def _common_overrides(values: Values, total_steps: int) -> list[str]:
    """Return the overrides that all training runs of the drill have."""
    overrides = ["trainer.max_epochs=null", "trainer.log_every=1", "trainer.sample_every=0"]
    overrides.append("checkpoint.keep_rolling=1")
    if values["logger"].get("wandb"):
        overrides.append("logger.wandb=false")
    schedule = values["schedule"]
    if "steps" in schedule and schedule["steps"] is None:
        # With the learning rates of the real run. A schedule must be longer than its warm-up.
        parts = schedule.get("warmup_steps", 0) + schedule.get("decay_steps", 0)
        overrides.append(f"schedule.steps={max(total_steps, parts)}")
    return overrides


def _compare(killed: TrainingRun, other: TrainingRun, kill: Kill, steps: int) -> Recovery:
    ours, theirs = killed.checkpoints / LATEST, other.checkpoints / LATEST
    for path in (ours, theirs):
        check(path)
    differing, tensors = compare_tensors(ours, theirs)
    differing += differing_state(read_head(ours), read_head(theirs))
    differing += differing_losses(killed.logged_steps(), other.logged_steps(), steps)
    differing += _resumed_event(killed)["not_exact"]
    replays = killed.events("replay_verified")
    differing += [replay["first_difference"] for replay in replays if replay["first_difference"]]
    identical = sum(replay["identical_steps"] for replay in replays)
    return Recovery(
        kill, steps=steps, identical_steps=identical, tensors=tensors, differing=differing
    )


def _resumed_event(killed: TrainingRun) -> dict[str, Any]:
    resumed = killed.events("run_resumed")
    if not resumed:
        raise InputError(f"the killed run was not resumed: see {killed.output}")
    return resumed[0]


def _step_seconds(run: TrainingRun, tokens_per_step: int) -> float:
    """Return the median seconds of a step, without the first two steps, which are slower."""
    logged = run.logged_steps()
    return median(tokens_per_step / float(step["tokens_per_s"]) for step in logged[2:] or logged)


def _free(scratch: Path) -> int:
    """Return the bytes that will be free when the folder of the drill is deleted."""
    from gpt2ckpt.files.disk_usage import disk_bytes, measure_free, paths_below

    return measure_free(scratch.parent) + disk_bytes(paths_below(scratch))
