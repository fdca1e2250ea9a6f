"""Warnings about plans that are possible and hardly meant, before hours are spent on them."""

from gpt2ckpt.training.validate_run import ValidatedRun
from gpt2ckpt.units import human_bytes, human_duration

MANY_EPOCHS = 100
"""Passes over the training data: more than nanoGPT's recipe for a megabyte of Shakespeare, 82.
Beyond about 40, repeated text teaches a language model nothing more (Muennighoff et al. 2023,
"Scaling Data-Constrained Language Models", arXiv:2305.16264)."""
LONG = 30 * 24 * 3600.0  # seconds of training that is left


def plan_warnings(validated: ValidatedRun) -> list[str]:
    """Return a sentence for each thing that the config and the data make odd together."""
    return [*_epochs(validated), *_schedule(validated), *_never_reached(validated)]


def memory_warnings(needed: int, total: int) -> list[str]:
    """Return a warning if a rank needs more bytes than its device has."""
    if needed <= total:
        return []
    return [
        f"weights, gradients and optimizer state alone take {human_bytes(needed)}, and the device "
        f"has {human_bytes(total)}: train a smaller model"
    ]


def disk_warnings(coming: int, free: int) -> list[str]:
    """Return a warning if the checkpoints that are still to come take more bytes than are free."""
    if coming <= free:
        return []
    return [
        f"the checkpoints may take {human_bytes(coming)} more, and {human_bytes(free)} are free: "
        "saves fail once the disk is full; free space, or keep fewer (checkpoint.keep_rolling, "
        "keep_emergency, keep_epochs)"
    ]


def time_warnings(seconds_left: float | None, steps_left: int) -> list[str]:
    """Return a warning if the steps that are left take months; None is a time not known yet."""
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
        f"the run reads its training data, {tokens:,} tokens, {epochs:,.0f} times: give more data "
        "(data=text data.train=GLOB, or data=tokens with data.train and data.val), or lower "
        "trainer.max_steps or trainer.max_epochs"
    ]


def _schedule(validated: ValidatedRun) -> list[str]:
    schedule, steps = validated.config.schedule, validated.total_steps
    warmup, length = schedule.warmup_steps, getattr(schedule, "steps", None)
    share = f"{validated.schedule(steps - 1):.0%} of what is set"
    if warmup > steps:
        return [
            f"the warm-up of {warmup:,} steps is longer than the run of {steps:,}: the learning "
            f"rate only reaches {share} (schedule.warmup_steps)"
        ]
    decay = getattr(schedule, "decay_steps", 0)
    if length is None and warmup + decay > steps:
        return [
            f"schedule.warmup_steps={warmup:,} and schedule.decay_steps={decay:,} together are "
            f"longer than the run of {steps:,} steps: the learning rate never stays at what is set"
        ]
    if length is not None and length > steps:
        return [
            f"schedule.steps={length:,} is longer than the run of {steps:,} steps: the learning "
            f"rate ends at {share}, before the schedule does"
        ]
    if length is not None and length < steps:
        effect = "and change nothing" if validated.schedule(steps - 1) == 0 else ""
        return [
            f"schedule.steps={length:,} is shorter than the run of {steps:,} steps: the last "
            f"{steps - length:,} train at {share} {effect}".rstrip()
        ]
    return []


def _never_reached(validated: ValidatedRun) -> list[str]:
    """What is asked for every so many steps, of which the run has fewer."""
    trainer, checkpoint = validated.config.trainer, validated.config.checkpoint
    asked = [
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
        for key, every, effect in asked
        if every > validated.total_steps
    ]
    if not missed:
        return []
    return [f"never reached in {validated.total_steps:,} steps: {', '.join(missed)}"]
