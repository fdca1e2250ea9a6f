"""Runs the drill: kill a training, resume it, train without a kill, compare and measure."""

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
from gpt2ckpt.recovery_drill.training_process import Training

MAX_SAVES = 200  # after which a training that could not be killed during a save ends
EVAL_BLOCKS = 16
MARGIN = 1.2  # the time between two measured saves, relative to the time that a save takes


@dataclass(frozen=True)
class DrillRun:
    """A drill of a run.

    Args:
        overrides: those of the run.
        values: the composed config of the run.
        settings: what the drill needs to know of the run.
        scratch: the folder of the drill.
        steps: how many steps the drill trains at least.
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
        """Run all trainings and compare them; `file_system` has been examined before.

        Raises:
            ConfigError, InputError: with the error of a training that failed.
        """
        killed = self._training("killed")
        every = max(1, self.steps // 4)
        writing = killed.kill_in_save(
            f"trainer.max_steps={every * MAX_SAVES}",
            f"checkpoint.save_every={every}",
            *self._evaluations(every),
        )
        before = max((logged["step"] for logged in killed.logged_steps()), default=0)
        self.report(f"trained {before} steps and killed it (SIGKILL) while it wrote {writing}")
        steps = self._length(killed, before, every)
        more = (f"trainer.max_steps={steps}", f"checkpoint.save_every={every}")
        started = killed.train_to_end("+resume=latest", *more, *self._evaluations(every))
        resumed = _resumed_event(killed)["step"]
        self.report(f"resumed it from step {resumed} and trained to step {steps}")
        undisturbed = self._training("undisturbed")
        undisturbed.train_to_end(
            f"trainer.max_steps={steps}",
            f"checkpoint.save_every={max(1, steps // 3)}",
            *self._evaluations(steps),
        )
        self.report(f"trained the same {steps} steps without a kill")
        first = next(logged for logged in killed.logged_steps() if logged["step"] > resumed)
        recovery = _compare(killed, undisturbed, Kill(writing, before, resumed), steps)
        cost = self._measure(undisturbed, first["time"] - started)
        return DrillResult(self.settings, file_system, recovery, cost)

    def _training(self, name: str) -> Training:
        common = _common_overrides(self.values, self.settings.total_steps)
        return Training([*self.overrides, *common], self.scratch / name, self.settings.ranks)

    def _evaluations(self, every: int) -> tuple[str, ...]:
        trainer = self.values["trainer"]
        blocks = min(in_blocks(self.values)["trainer"]["eval_blocks"], EVAL_BLOCKS)
        wanted = every if trainer["eval_every"] else 0
        return (
            f"trainer.eval_every={wanted}",
            f"trainer.eval_blocks={blocks}",
            "trainer.eval_steps=null",
        )

    def _length(self, killed: Training, before: int, every: int) -> int:
        """Return the number of steps: past the kill, and for three saves that do not overlap."""
        saves = killed.events("checkpoint_saved")
        slowest = max((save["seconds"] for save in saves), default=0.0)
        gap = int(MARGIN * slowest / _step_seconds(killed, self.tokens_per_step)) + 1
        return max(self.steps, before + every, 3 * gap)

    def _measure(self, training: Training, restart: float) -> Cost:
        saves = training.events("checkpoint_saved")
        if len(saves) < 3:
            raise InputError(
                f"a training of the drill did not save often enough: see {training.output}"
            )
        return Cost(
            step=_step_seconds(training, self.tokens_per_step),
            first_stall=saves[0]["stall_seconds"],
            stall=saves[1]["stall_seconds"],
            durable_after=saves[1]["seconds"],
            restart=restart,
            size=(training.checkpoints / LATEST).stat().st_size,
            free=_free(self.scratch),
        )


def _common_overrides(values: Values, total_steps: int) -> list[str]:
    """Return the overrides of every training of a drill: short, every step logged, no W&B."""
    overrides = ["trainer.max_epochs=null", "trainer.log_every=1", "trainer.sample_every=0"]
    overrides += ["logger.wandb=false", "checkpoint.keep_rolling=1"]
    schedule = values["schedule"]
    if "steps" in schedule and schedule["steps"] is None:
        # The learning rates of the real run. A schedule must be longer than its warm-up.
        parts = schedule["warmup_steps"] + schedule.get("decay_steps", 0)
        overrides.append(f"schedule.steps={max(total_steps, parts)}")
    return overrides


def _compare(killed: Training, other: Training, kill: Kill, steps: int) -> Recovery:
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


def _resumed_event(killed: Training) -> dict[str, Any]:
    resumed = killed.events("run_resumed")
    if not resumed:
        raise InputError(f"the killed training was not resumed: see {killed.output}")
    return resumed[0]


def _step_seconds(training: Training, tokens_per_step: int) -> float:
    """Return the median seconds of a step, without the first two, which are slower."""
    logged = training.logged_steps()
    return median(tokens_per_step / float(step["tokens_per_s"]) for step in logged[2:] or logged)


def _free(scratch: Path) -> int:
    """Return the bytes that are free once the drill's folder is gone."""
    from gpt2ckpt.files.disk_usage import disk_bytes, measure_free, paths_below

    return measure_free(scratch.parent) + disk_bytes(paths_below(scratch))
