"""The drill itself: kill, resume, train undisturbed, compare, measure."""

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

MAX_SAVES = 200  # after which a training that could not be caught in a save ends by itself
EVAL_BLOCKS = 16
MARGIN = 1.2  # saves are measured this much further apart than they take


@dataclass(frozen=True)
class DrillRun:
    """A drill in `scratch` of the run that `words` make; `steps` is how many it trains at least."""

    words: list[str]
    values: Values
    settings: Settings
    scratch: Path
    steps: int
    tokens_per_step: int
    say: Callable[[str], None]

    def run(self, file_system: FileSystem) -> DrillResult:
        """Raises ConfigError or InputError for what the trainings complain of."""
        killed = self._training("killed")
        every = max(1, self.steps // 4)
        writing = killed.killed_in_a_save(
            f"trainer.max_steps={every * MAX_SAVES}",
            f"checkpoint.save_every={every}",
            *self._evaluations(every),
        )
        before = max((event["step"] for event in killed.events()), default=0)
        self.say(f"trained {before} steps and killed it (SIGKILL) while it wrote {writing}")
        steps = self._length(killed, before, every)
        more = (f"trainer.max_steps={steps}", f"checkpoint.save_every={every}")
        started = killed.to_the_end("+resume=latest", *more, *self._evaluations(every))
        resumed = _resumed_step(killed)
        self.say(f"resumed it from step {resumed} and trained to step {steps}")
        undisturbed = self._training("undisturbed")
        undisturbed.to_the_end(
            f"trainer.max_steps={steps}",
            f"checkpoint.save_every={max(1, steps // 3)}",
            *self._evaluations(steps),
        )
        self.say(f"trained the same {steps} steps without a kill")
        first = next(event for event in killed.events() if event["step"] > resumed)
        recovery = _compare(killed, undisturbed, Kill(writing, before, resumed), steps)
        cost = self._measure(undisturbed, first["time"] - started)
        return DrillResult(self.settings, file_system, recovery, cost)

    def _training(self, name: str) -> Training:
        words = [*self.words, *_common_overrides(self.values, self.settings.total_steps)]
        return Training(words, self.scratch / name, self.settings.ranks)

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
        """Steps enough to go on after the kill, and for three saves that don't wait in a queue."""
        saves = killed.saves()
        slowest = max((save.durable_after for save in saves), default=0.0)
        gap = int(MARGIN * slowest / _step_seconds(killed, self.tokens_per_step)) + 1
        return max(self.steps, before + every, 3 * gap)

    def _measure(self, training: Training, restart: float) -> Cost:
        saves = training.saves()
        if len(saves) < 3:
            raise InputError(f"its saves are not in the log of a training: {training.log}")
        return Cost(
            step=_step_seconds(training, self.tokens_per_step),
            first_stall=saves[0].waited,
            stall=saves[1].waited,
            durable_after=saves[1].durable_after,
            restart=restart,
            size=(training.checkpoints / LATEST).stat().st_size,
            free=_free(self.scratch),
        )


def _common_overrides(values: Values, total_steps: int) -> list[str]:
    """What every training of a drill has: it is short, watched closely, and tells nobody."""
    words = ["trainer.max_epochs=null", "trainer.log_every=1", "trainer.sample_every=0"]
    words += ["logger.wandb=false", "checkpoint.keep_rolling=1"]
    schedule = values["schedule"]
    if "steps" in schedule and schedule["steps"] is None:
        # The learning rates of the real run, which may end in its warm-up; a length may not.
        parts = schedule["warmup_steps"] + schedule.get("decay_steps", 0)
        words.append(f"schedule.steps={max(total_steps, parts)}")
    return words


def _compare(killed: Training, other: Training, kill: Kill, steps: int) -> Recovery:
    ours, theirs = killed.checkpoints / LATEST, other.checkpoints / LATEST
    for path in (ours, theirs):
        check(path)
    differing, tensors = compare_tensors(ours, theirs)
    differing += differing_state(read_head(ours), read_head(theirs))
    differing += differing_losses(killed.events(), other.events(), steps)
    said = killed.lines("replay: ", "not bitwise the same")
    differing += [line for line in said if not line.endswith("identical")]
    replay = next((line for line in said if line.startswith("replay: ")), "")
    return Recovery(kill, steps, replay, tensors, differing)


def _resumed_step(killed: Training) -> int:
    line = next(iter(killed.lines("resuming from ")), "")
    step = line.rpartition(" ")[2]
    if not step.isdigit():
        raise InputError(f"the killed training was not resumed: see {killed.log}")
    return int(step)


def _step_seconds(training: Training, tokens_per_step: int) -> float:
    """The median step, without the first two, which set everything up."""
    events: list[dict[str, Any]] = training.events()
    return median(tokens_per_step / float(e["tokens_per_s"]) for e in events[2:] or events)


def _free(scratch: Path) -> int:
    """Return the bytes that are free once the drill's folder is gone."""
    from gpt2ckpt.files.disk_usage import disk_bytes, measure_free, paths_below

    return measure_free(scratch.parent) + disk_bytes(paths_below(scratch))
