"""The report at the start of a run, and its preview for a dry run."""

import logging
import math
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median
from typing import Any

from gpt2ckpt.checkpoint.emergency_reserve import with_margin
from gpt2ckpt.checkpoint.event_sink import EventSink
from gpt2ckpt.checkpoint.retention import most_files
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.config.registry import option_of
from gpt2ckpt.config.schema import ModelConfig, ModelShape, TrainConfig
from gpt2ckpt.data.corpus import Corpus
from gpt2ckpt.data.tokens import TokenStream, count_blocks
from gpt2ckpt.files.disk_usage import disk_bytes, free_space_text, measure_free
from gpt2ckpt.loggers import metrics_file
from gpt2ckpt.model.attention import keeps_weights
from gpt2ckpt.model.counts import size_of
from gpt2ckpt.parallel.process_group import ProcessGroup
from gpt2ckpt.runs.claim import holds_run
from gpt2ckpt.runs.layout import CHECKPOINTS, HISTORY
from gpt2ckpt.runs.start import Start
from gpt2ckpt.runs.take_directory import archive_preview
from gpt2ckpt.training.console_format import Row, layout, rows_of, warning_lines
from gpt2ckpt.training.disk_check import check_free_space, checkpoint_bytes, disk_warnings
from gpt2ckpt.training.hardware import (
    DTYPES,
    Hardware,
    differences,
    hardware_of,
    prepare_process,
)
from gpt2ckpt.training.plan_warnings import (
    memory_needed,
    memory_warnings,
    plan_warnings,
    repeated_keys,
    time_warnings,
)
from gpt2ckpt.training.saving import retention_of
from gpt2ckpt.training.source_identity import changed_code, changed_libraries
from gpt2ckpt.training.state import versions
from gpt2ckpt.training.validate_run import ValidatedRun
from gpt2ckpt.units import human_bytes, human_count, human_duration, plural

log = logging.getLogger(__name__)
SPEEDS = 20  # the speed of a run is the median of this many logged speeds
_FILES_SHOWN = 3


def record_start(events: EventSink, start: Start, hardware: Hardware, ranks: int) -> None:
    """Record durably how a run starts. Call it after `prepare_process`, before the training."""
    skipped = [{"path": str(path), "reason": reason} for path, reason in start.skipped_files]
    identity = {"run_id": start.identity.id, "name": start.identity.name, "ranks": ranks}
    if start.found is not None and start.directory is not None:
        changes = {change.key: [change.old, change.new] for change in start.changes}
        events.write(
            "run_resumed",
            start.step,
            **identity,
            file=str(start.found.path),
            changes=changes,
            not_exact=environment_changes(start, hardware, ranks),
            skipped=skipped,
        )
    else:
        parent = asdict(start.identity.parent) if start.identity.parent else None
        events.write(
            "run_started",
            start.step,
            **identity,
            parent=parent,
            overrides=start.overrides,
            skipped=skipped,
        )
    events.sync()


def log_start(
    directory: Path, start: Start, validated: ValidatedRun, hardware: Hardware, ranks: int
) -> None:
    """Log the plan of a run and the warnings about it."""
    lines, warnings = plan(directory, start, validated, hardware, ranks)
    for line in not_exact(start, hardware, ranks):
        log.warning("%s", line)
    for line in lines:
        log.info("%s", line)
    for line in warnings:
        log.warning("%s", line)


def preview(
    start: Start, validated: ValidatedRun, group: ProcessGroup, wanted: Path, *, is_given: bool
) -> list[str]:
    """Return the lines that a start would log, for a dry run.

    Raises:
        InputError: The disk is too full for the run.
        ConfigError: The device or the precision is not available.
    """
    hardware = hardware_of(start, validated, group)
    directory = start.directory or wanted
    check_free_space(start, validated.config, directory)
    prepare_process(hardware, deterministic=validated.config.trainer.deterministic)
    lines, warnings = plan(directory, start, validated, hardware, group.size, is_preview=True)
    inexact = not_exact(start, hardware, group.size)
    if start.directory is not None:
        first = "dry run: nothing is written. This command would resume:"
    else:
        where = str(wanted)
        if is_given and not start.restarts_run and holds_run(wanted):
            where = f"{wanted}_run_… ({wanted} already holds a run)"
        first = f"dry run: nothing is written. This command would start a new run in {where}"
    notices = [*start.notices(), *archive_preview(start)]
    return [first, *notices, *inexact, *lines, *warnings]


def not_exact(start: Start, hardware: Hardware, ranks: int) -> list[str]:
    """Return the warning that a resume cannot be bitwise exact; empty if it can."""
    changed = environment_changes(start, hardware, ranks)
    return [f"not bitwise equal to an uninterrupted run: {', '.join(changed)}"] if changed else []


def environment_changes(start: Start, hardware: Hardware, ranks: int) -> list[str]:
    """Return each change since the saved state that makes a resume not bitwise exact.

    Compares the training code, the libraries and the machine. Call it after `prepare_process`.
    """
    if start.state is None:
        return []
    code = changed_code(versions(), start.state.versions)
    return [
        *([code] if code else []),
        *differences(hardware.recorded(ranks), start.state.environment),
        *changed_libraries(versions(), start.state.versions),
    ]


def plan(
    directory: Path,
    start: Start,
    validated: ValidatedRun,
    hardware: Hardware,
    ranks: int,
    *,
    is_preview: bool = False,
) -> tuple[list[str], list[str]]:
    """Return the lines that describe a run before its first step, and the warnings about it.

    A preview does not name the run directory, which is named only at the start.
    """
    config, corpus = validated.config, validated.corpus
    size, free = checkpoint_bytes(start, config), measure_free(directory)
    needed, total = memory_needed(config, ranks), hardware.memory_bytes
    speed = _logged_speed(directory) if _is_same_machine(start, hardware, ranks) else None
    pretrained, block_size = validated.pretrained, config.model.block_size
    weights = [*pretrained.source.skipped, pretrained.summary] if pretrained else []
    lines = layout(
        [
            *machine_rows(hardware, config, ranks),
            *model_rows(config.model),
            *rows_of("weights", weights),
            *optimizer_rows(config),
            *length_rows(validated, speed),
            *data_rows("train data", corpus, corpus.train, block_size),
            *data_rows("val data", corpus, corpus.val, block_size),
            memory_row(needed, total),
            *([] if is_preview else [("run", str(directory))]),
            *checkpoint_rows(validated, size, free),
        ]
    )
    taken = disk_bytes(Store(directory / CHECKPOINTS).files()) if start.directory else 0
    to_come = _most_bytes(validated, size) - taken
    warnings = [
        *corpus.warnings,
        *repeated_keys(start.given),
        *plan_warnings(validated),
        *memory_warnings(needed, total),
        *(disk_warnings(to_come, free) if config.checkpoint.enabled else []),
        *time_warnings(_seconds_left(validated, speed), validated.steps_left),
    ]
    return lines, warning_lines(warnings)


def machine_rows(hardware: Hardware, config: TrainConfig, ranks: int) -> list[Row]:
    """Return the rows on the device, the precision and the kernels."""
    trainer, off_on = config.trainer, ("off", "on")
    attention = ""
    if isinstance(config.model, ModelConfig):
        dtype = DTYPES[hardware.precision]
        keeps = keeps_weights(hardware.device.type, dtype, config.model.block_size)
        attention = f"attention {'by matrix products' if keeps else 'scaled_dot_product_attention'}"
    parts = [
        attention,
        f"compile {off_on[trainer.compile]}",
        f"deterministic {off_on[trainer.deterministic]}",
        plural(hardware.threads, "thread"),
        f"{ranks} ranks" if ranks > 1 else "",
    ]
    compute = ", ".join(filter(None, parts))
    return [
        ("device", f"{hardware.device}, {hardware.name} ({hardware.device_reason})"),
        ("precision", f"{hardware.precision} ({hardware.precision_reason})"),
        ("compute", compute),
    ]


def model_rows(model: ModelShape) -> list[Row]:
    """Return the rows on the shape of the model, its parameters and its FLOPs per token."""
    if isinstance(model, ModelConfig):
        layers, heads = plural(model.n_layer, "layer"), plural(model.n_head, "head")
        kind = f"GPT-2, {layers} x {model.n_embd}, {heads}"
    else:
        kind = option_text("model", model)
    shape = f"{kind}, context {model.block_size:,}, vocabulary {model.vocab_size:,}"
    size = size_of(model)
    parts = ", ".join(f"{part} {count:,}" for part, count in size.parts.items())
    work = f"{human_count(size.flops_per_token)}FLOP per token, forward and backward"
    return [("model", shape), ("parameters", f"{size.parameters:,}: {parts}"), ("work", work)]


def optimizer_rows(config: TrainConfig) -> list[Row]:
    """Return the row on the optimizer, its learning rates and the schedule."""
    optimizer, schedule = config.optimizer, config.schedule
    rates = [
        f"{field.name} {getattr(optimizer, field.name):g}"
        for field in fields(optimizer)
        if field.name.endswith("lr") and isinstance(getattr(optimizer, field.name), int | float)
    ]
    warmup = getattr(schedule, "warmup_steps", None)
    parts = [
        option_text("optimizer", optimizer),
        *rates,
        f"schedule {option_text('schedule', schedule)}",
        f"warm-up {plural(warmup, 'step')}" if isinstance(warmup, int) else "",
    ]
    return [("optimizer", ", ".join(filter(None, parts)))]


def option_text(group: str, config: Any) -> str:
    """Return the name of the option that a typed config belongs to, with its plugin."""
    option = option_of(group, config)
    return option.name if option.is_built_in else f"{option.name} (plugin {option.module})"


def length_rows(validated: ValidatedRun, tokens_per_s: float | None) -> list[Row]:
    """Return the rows on the size of a step, the length of the run and the time left.

    Args:
        validated: The plan of the run.
        tokens_per_s: The speed of an earlier process on the same hardware; None if not known.
    """
    trainer, block_size = validated.config.trainer, validated.config.model.block_size
    step = (
        f"{plural(validated.blocks_per_step, 'block')} of {block_size:,} = "
        f"{validated.tokens_per_step:,} tokens "
        f"(micro-batch {trainer.batch_size:,}, accumulation {trainer.grad_accum:,})"
    )
    done = f" ({validated.done.steps:,} done)" if validated.done.steps else ""
    epochs = f"{validated.epochs:,.2f} epochs"
    if trainer.max_epochs and trainer.max_steps != validated.total_steps:
        epochs = plural(trainer.max_epochs, "epoch")
    per_parameter = validated.total_tokens / size_of(validated.config.model).parameters
    length = (
        f"{plural(validated.total_steps, 'step')}{done}, {validated.total_tokens:,} tokens, "
        f"{epochs}, {per_parameter:,.2f} tokens per parameter"
    )
    time, seconds = "not known before the first steps", _seconds_left(validated, tokens_per_s)
    if seconds is not None:
        time = (
            f"about {human_duration(seconds)} for {plural(validated.steps_left, 'step')} at "
            f"{tokens_per_s:,.0f} tok/s (last logged), plus evaluations and saves"
        )
    return [("step", step), ("training", length), ("time", time)]


def data_rows(label: str, corpus: Corpus, split: TokenStream, block_size: int) -> list[Row]:
    """Return the rows on the tokens of a split: their total, and the first files by name.

    A file from which tokens are held out is in both splits, each with a part of its tokens.
    """
    held = {file.name: file.tokens for file in corpus.files}
    files = [(piece.name, len(piece.tokens), held[piece.name]) for piece in split.pieces]
    used = sum(tokens for _, tokens, _ in files)
    shown = files[:_FILES_SHOWN]
    if len(files) > 1:
        shown = [(f"{len(files):,} files", used, sum(total for _, _, total in files)), *shown]
    lines = [
        f"{name}: {tokens:,}{f' of {total:,}' if total != tokens else ''} tokens"
        for name, tokens, total in shown
    ]
    lines[0] += f", {plural(count_blocks(used, block_size), 'block')}"
    if len(files) > _FILES_SHOWN:
        lines.append(f"and {len(files) - _FILES_SHOWN:,} more")
    return rows_of(label, lines)


def memory_row(needed: int, total: int) -> Row:
    """Return the row on the memory that a rank needs and that its device has, in bytes."""
    text = (
        f"at least {human_bytes(needed)} of {human_bytes(total)}: weights, gradients, optimizer "
        "state; activations come on top"
    )
    return "memory", text


def checkpoint_rows(validated: ValidatedRun, checkpoint_bytes: int, free_bytes: int) -> list[Row]:
    """Return the rows on the saves: their interval, how many files are kept, and the disk space."""
    checkpoint = validated.config.checkpoint
    if not checkpoint.enabled:
        return [("checkpoints", "none, so a crash loses this run (checkpoint.enabled=false)")]
    every = f"every {plural(checkpoint.save_every, 'step')} and " if checkpoint.save_every else ""
    keep_epochs = checkpoint.keep_epochs if checkpoint.save_epochs else 0
    epochs = "all" if keep_epochs is None else f"{keep_epochs:,}"
    kept = (
        f"keeps {checkpoint.keep_rolling:,} rolling, {checkpoint.keep_emergency:,} emergency, "
        f"{epochs} epoch files"
    )
    space = (
        f"{human_bytes(checkpoint_bytes)} a checkpoint, at most "
        f"{human_bytes(_most_bytes(validated, checkpoint_bytes))} for {_most_files(validated):,}, "
        f"{free_space_text(free_bytes)}"
    )
    return [("checkpoints", f"{every}at the end; {kept}"), ("disk", space)]


def _most_files(validated: ValidatedRun) -> int:
    """Return the largest number of checkpoints that take disk space at the same time."""
    checkpoint = validated.config.checkpoint
    epochs = math.ceil(validated.epochs) if checkpoint.save_epochs else 0
    return most_files(retention_of(checkpoint), epochs)


def _most_bytes(validated: ValidatedRun, checkpoint_bytes: int) -> int:
    """Return the largest disk usage of all checkpoints and the emergency reserve, in bytes."""
    return checkpoint_bytes * _most_files(validated) + with_margin(checkpoint_bytes)


def _is_same_machine(start: Start, hardware: Hardware, ranks: int) -> bool:
    recorded = start.state.environment if start.state and start.directory else None
    return hardware.recorded(ranks) == recorded


def _logged_speed(directory: Path) -> float | None:
    """Return the median tokens per second of the last logged steps; None without one."""
    history = directory / HISTORY
    events = metrics_file.read(history) if history.exists() else []
    speeds = [event["tokens_per_s"] for event in events if "tokens_per_s" in event]
    return median(speeds[-SPEEDS:]) if speeds else None


def _seconds_left(validated: ValidatedRun, tokens_per_s: float | None) -> float | None:
    """Return the training time left, without evaluations and saves; None if not known."""
    left = validated.steps_left * validated.tokens_per_step
    return left / tokens_per_s if tokens_per_s else None
