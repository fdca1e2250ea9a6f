"""Warnings about unusual plans: memory, time, and settings that do not fit the run's length."""

from gpt2ckpt.config.checks import FSDP
from gpt2ckpt.config.compose import parse_overrides
from gpt2ckpt.config.schema import TrainConfig
from gpt2ckpt.model.counts import size_of
from gpt2ckpt.training.disk_check import BYTES_PER_VALUE, count_trained_values
from gpt2ckpt.training.validate_run import ValidatedRun
from gpt2ckpt.units import human_bytes, human_duration

MANY_EPOCHS = 100
"""Passes over the data. nanoGPT's recipe for a megabyte of Shakespeare has 82. Beyond about 40,
repeated text teaches a language model nothing more (Muennighoff et al. 2023, "Scaling
Data-Constrained Language Models", arXiv:2305.16264)."""
LONG = 30 * 24 * 3600.0  # seconds of remaining training that are a warning


def memory_needed(config: TrainConfig, ranks: int) -> int:
    """Return the bytes of weights, gradients and optimizer moments on one rank."""
    size = size_of(config.model)
    values = count_trained_values(config, size) + size.parameters
    return values * BYTES_PER_VALUE // (ranks if config.trainer.parallel == FSDP else 1)


def plan_warnings(validated: ValidatedRun) -> list[str]:
    """Return a warning for each unusual relation between the config, the data and the length."""
    return [*_epochs(validated), *_schedule(validated), *_never_reached(validated)]


def repeated_keys(overrides: list[str]) -> list[str]:
    """Return a warning for each key that `overrides` set to different values."""
    given: dict[str, list[str]] = {}
    for override in parse_overrides(overrides):
        if not override.is_delete():
            value = str(override.input_line).partition("=")[2]
            given.setdefault(override.key_or_group, []).append(value)
    return [
        f"{key} is set to {', then to '.join(values)}: the last value is used. Remove the rest"
        for key, values in given.items()
        if len(set(values)) > 1
    ]


def memory_warnings(needed: int, total: int) -> list[str]:
    """Return a warning if a rank needs more bytes than its device has."""
    if needed <= total:
        return []
    return [
        f"weights, gradients and optimizer state alone take {human_bytes(needed)}, and the device "
        f"has {human_bytes(total)}: train a smaller model"
    ]


def time_warnings(seconds_left: float | None, steps_left: int) -> list[str]:
    """Return a warning if the remaining steps take more than a month; None is an unknown time."""
    if seconds_left is None or seconds_left <= LONG:
        return []
    return [
        f"at this speed the {steps_left:,} steps left take {human_duration(seconds_left)}: lower "
        "trainer.max_steps, or train a smaller model or on a faster device"
    ]


def _epochs(validated: ValidatedRun) -> list[str]:
    epochs = validated.epochs
    if epochs <= MANY_EPOCHS or validated.config.trainer.overfit:
        return []
    tokens = len(validated.corpus.train)
    return [
        f"the run reads its training data, {tokens:,} tokens, {epochs:,.0f} times: pass more data "
        "(data=text data.train=GLOB, or data=tokens with data.train and data.val), or lower "
        "trainer.max_steps or trainer.max_epochs"
    ]


def _schedule(validated: ValidatedRun) -> list[str]:
    schedule, steps = validated.config.schedule, validated.total_steps
    warmup, length = getattr(schedule, "warmup_steps", 0), getattr(schedule, "steps", None)
    share = f"{validated.schedule(steps - 1):.0%} of optimizer.lr"
    if warmup > steps:
        return [
            f"the warm-up of {warmup:,} steps is longer than the run of {steps:,}: the learning "
            f"rate only reaches {share}. Lower schedule.warmup_steps"
        ]
    decay = getattr(schedule, "decay_steps", 0)
    if length is None and warmup + decay > steps:
        return [
            f"schedule.warmup_steps={warmup:,} and schedule.decay_steps={decay:,} together are "
            f"longer than the run of {steps:,} steps: the learning rate never stays at "
            "optimizer.lr. Lower one of them"
        ]
    if length is not None and length > steps:
        return [
            f"schedule.steps={length:,} is longer than the run of {steps:,} steps: the learning "
            f"rate ends at {share}. Set schedule.steps=null to end the schedule with the run"
        ]
    if length is not None and length < steps:
        effect = " and change nothing" if validated.schedule(steps - 1) == 0 else ""
        return [
            f"schedule.steps={length:,} is shorter than the run of {steps:,} steps: the last "
            f"{steps - length:,} train at {share}{effect}. Set schedule.steps=null to end the "
            "schedule with the run"
        ]
    return []


def _never_reached(validated: ValidatedRun) -> list[str]:
    """Warn about intervals, in steps, that are longer than the run."""
    trainer, checkpoint = validated.config.trainer, validated.config.checkpoint
    intervals = [
        ("trainer.log_every", trainer.log_every, "only the first and the last step are logged"),
        ("trainer.eval_every", trainer.eval_every, "evaluated only at the end"),
        ("trainer.sample_every", trainer.sample_every, "no text sample"),
        (
            "checkpoint.save_every",
            checkpoint.save_every if checkpoint.enabled else 0,
            "saved only at the end and on a signal",
        ),
    ]
    missed = [
        f"{key}={every:,} ({effect})"
        for key, every, effect in intervals
        if every > validated.total_steps
    ]
    if not missed:
        return []
    return [f"never reached in {validated.total_steps:,} steps: {', '.join(missed)}"]
