"""Which directory of a sweep belongs to which of its jobs: by what it trains, never by its number.

A sweep that is continued may have its values in another order, or more of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2ckpt.config.compose import parse_overrides
from gpt2ckpt.config.replay import LENGTH, SHAPE, WATCHING, Values, flatten, freeze, task_overrides


@dataclass(frozen=True)
class RecordedJob:
    """A job's directory, with the config (flat) and overrides that it was last trained with.

    `step` is that of its newest checkpoint, None if it never came to one.
    """

    directory: Path
    config: Values
    overrides: list[str]
    step: int | None = None


@dataclass(frozen=True)
class Job:
    """One job as the command line makes it; `swept` are the keys that differ between jobs."""

    overrides: list[str]
    config: Values
    swept: list[str]

    @classmethod
    def of(cls, overrides: list[str], values: Values, swept: list[str]) -> "Job":
        """The job that trains the composed config `values`."""
        return cls(task_overrides(overrides), flatten(freeze(values)), swept)

    @property
    def label(self) -> str:
        """The overrides that tell it from the others; all of them where none is swept."""
        own = [o for o in parse_overrides(self.overrides) if o.get_key_element() in self.swept]
        return " ".join(o.input_line for o in own) or " ".join(self.overrides)


def find_own(job: Job, recorded: Sequence[RecordedJob]) -> RecordedJob | None:
    """The directory that `job` was trained in before.

    It has the same config or came from the same overrides (conf/ may have changed since). Or it
    differs only in its length and in what is logged and saved, as where a sweep is extended with
    trainer.max_steps; then only if no second one does.
    """
    for one in recorded:
        if one.config == job.config:
            return one
    for one in recorded:
        if set(one.overrides) == set(job.overrides):
            return one
    if not all(any(_within(key, swept) for key in job.config) for swept in job.swept):
        return None  # a group like experiment, which may differ in anything
    similar = [one for one in recorded if _identity(one.config, job) == _identity(job.config, job)]
    return similar[0] if len(similar) == 1 else None


def swept_keys(overrides: list[str]) -> list[str]:
    """The keys and groups to which a multirun's `overrides` give several values."""
    return [o.get_key_element() for o in parse_overrides(overrides) if o.is_sweep_override()]


def _identity(config: Values, job: Job) -> Values:
    """What makes a training another one: all but its length, and what is written of it."""
    shape = tuple(f"model.{key}" for key in SHAPE) if config.get("model.init_from") else ()
    free = (*WATCHING, *LENGTH, *shape)  # pretrained weights bring their shape with them
    return {
        key: value
        for key, value in config.items()
        if not key.startswith(free) or any(_within(key, swept) for swept in job.swept)
    }


def _within(key: str, swept: str) -> bool:
    swept = swept.lstrip("+")
    return key == swept or key.startswith(f"{swept}.")
