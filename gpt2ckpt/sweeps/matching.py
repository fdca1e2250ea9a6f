"""Finds the directories of the jobs of a resumed sweep by their configs.

Job numbers are not used, because the resumed sweep may have more values, or the same values in a
different order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2ckpt.config.compose import parse_overrides
from gpt2ckpt.config.options import Effect
from gpt2ckpt.config.replay import LENGTH, Values, classify, flatten, freeze, task_overrides


@dataclass(frozen=True)
class RecordedJob:
    """The directory of a job, with the flat config and the overrides that it was last trained with.

    `step` is the step of the newest checkpoint, or None without a checkpoint.
    """

    directory: Path
    config: Values
    overrides: list[str]
    step: int | None = None


@dataclass(frozen=True)
class Job:
    """A job of the command line; `swept` are the keys that differ between jobs."""

    overrides: list[str]
    config: Values
    swept: list[str]

    @classmethod
    def of(cls, overrides: list[str], values: Values, swept: list[str]) -> "Job":
        """Return the job that trains the composed config `values`."""
        return cls(task_overrides(overrides), flatten(freeze(values)), swept)

    @property
    def label(self) -> str:
        """Return the swept overrides of this job; all overrides if none is swept."""
        own = [o for o in parse_overrides(self.overrides) if o.get_key_element() in self.swept]
        return " ".join(o.input_line for o in own) or " ".join(self.overrides)


def find_own(job: Job, recorded: Sequence[RecordedJob]) -> RecordedJob | None:
    """Return the recorded job that `job` resumes; None if there is none.

    The first rule that finds a job applies:
    1. It has the same config.
    2. It has the same overrides. The configs differ if conf/ has changed.
    3. It is the only job whose config differs just in the length of training, logging and saving,
       for example because trainer.max_steps was raised.
    """
    for other in recorded:
        if other.config == job.config:
            return other
    for other in recorded:
        if set(other.overrides) == set(job.overrides):
            return other
    if not all(any(_within(key, swept) for key in job.config) for swept in job.swept):
        return None  # a swept group such as experiment may change any key
    identity = _identity(job.config, job)
    similar = [other for other in recorded if _identity(other.config, job) == identity]
    return similar[0] if len(similar) == 1 else None


def swept_keys(overrides: list[str]) -> list[str]:
    """Return the keys and groups with several values in the overrides of a multirun."""
    return [o.get_key_element() for o in parse_overrides(overrides) if o.is_sweep_override()]


def _identity(config: Values, job: Job) -> Values:
    """Return the keys that identify a job, without unswept keys of length, logging and saving."""
    free = [Effect.HARMLESS]
    if config.get("model.init_from"):
        free.append(Effect.SHAPE)  # the shape is that of the pretrained weights
    return {
        key: value
        for key, value in config.items()
        if not (key in LENGTH or classify(key, config) in free)
        or any(_within(key, swept) for swept in job.swept)
    }


def _within(key: str, swept: str) -> bool:
    swept = swept.lstrip("+")
    return key == swept or key.startswith(f"{swept}.")
