"""What a run tells its user at its start and at its end, in the log."""

import logging
import math
import signal
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

from gpt2ckpt.checkpoint.event_sink import EventSink
from gpt2ckpt.checkpoint.policy import COPIES, most_files
from gpt2ckpt.checkpoint.reservation import with_margin
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.config.compose import as_typed
from gpt2ckpt.config.schema import ModelConfig
from gpt2ckpt.data.corpus import Corpus
from gpt2ckpt.data.tokens import TokenStream
from gpt2ckpt.files.disk_usage import UNKNOWN_FREE, disk_bytes, measure_free
from gpt2ckpt.files.timeouts import call_with_timeout
from gpt2ckpt.loggers import metrics_file
from gpt2ckpt.model.attention import keeps_weights
from gpt2ckpt.model.counts import count_flops_per_token, count_parameters
from gpt2ckpt.parallel.process_group import ProcessGroup
from gpt2ckpt.runs.claim import holds_run
from gpt2ckpt.runs.command import command
from gpt2ckpt.runs.layout import CHECKPOINTS, HISTORY
from gpt2ckpt.runs.start import Start
from gpt2ckpt.training import console_format
from gpt2ckpt.training.disk_check import check_free_space, checkpoint_bytes, memory_needed
from gpt2ckpt.training.hardware import (
    DTYPES,
    Hardware,
    differences,
    hardware_of,
    prepare_process,
)
from gpt2ckpt.training.plan_warnings import (
    disk_warnings,
    memory_warnings,
    plan_warnings,
    time_warnings,
)
from gpt2ckpt.training.reporting import Reporter
from gpt2ckpt.training.saving import retention_of
from gpt2ckpt.training.source_identity import changed_code, changed_libraries
from gpt2ckpt.training.state import versions
from gpt2ckpt.training.validate_run import ValidatedRun

log = logging.getLogger(__name__)
DISK_SECONDS = 5.0  # that the summary waits for an answer of the file system
SPEEDS = 20  # logged steps whose median is the speed of a run


def record_start(events: EventSink, start: Start, hardware: Hardware, ranks: int) -> None:
    """Record durably how a run starts, before it trains; after `prepare_process`."""
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


def start(
    directory: Path, start: Start, validated: ValidatedRun, hardware: Hardware, ranks: int
) -> None:
    """Log what is about to be done, on what, where it goes, and what is odd about it."""
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
    """Return what a start would log, for a dry run. Raises what the start would be refused with."""
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
    return [first, *start.notices(), *inexact, *lines, *warnings]


def not_exact(start: Start, hardware: Hardware, ranks: int) -> list[str]:
    """Return the line on `environment_changes`, if there are any."""
    changed = environment_changes(start, hardware, ranks)
    return [f"not bitwise the same as without the stop: {', '.join(changed)}"] if changed else []


def environment_changes(start: Start, hardware: Hardware, ranks: int) -> list[str]:
    """Return what keeps a resume from being bitwise exact, after `prepare_process`.

    The sources that train, the libraries and the machine are compared with those of the state.
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
    """Return the lines on what a start is going to do, and those that warn about it."""
    config = validated.config
    facts = _plan_facts(directory, start, validated, hardware, ranks)
    memory = console_format.MemoryFacts(memory_needed(config, ranks), hardware.memory_bytes)
    saving = _saving(directory, validated, checkpoint_bytes(start, config))
    taken = disk_bytes(Store(directory / CHECKPOINTS).files()) if start.directory else 0
    if is_preview:
        saving = replace(saving, run_dir=None)
    pretrained = validated.pretrained
    lines = console_format.start_report(
        machine=_machine_facts(validated, hardware, ranks),
        model=_model_facts(config.model),
        plan=facts,
        memory=memory,
        saving=saving,
        weights=[*pretrained.source.skipped, pretrained.summary] if pretrained else [],
    )
    warnings = [
        *validated.corpus.warnings,
        *plan_warnings(validated),
        *memory_warnings(memory.needed, memory.total),
        *(disk_warnings(saving.most_bytes - taken, saving.free_bytes) if saving.enabled else []),
        *time_warnings(facts.seconds_left, validated.total_steps - validated.done.steps),
    ]
    return lines, console_format.warning_lines(warnings)


def _machine_facts(
    validated: ValidatedRun, hardware: Hardware, ranks: int
) -> console_format.MachineFacts:
    trainer = validated.config.trainer
    dtype = DTYPES[hardware.precision]
    keeps = keeps_weights(hardware.device.type, dtype, validated.config.model.block_size)
    return console_format.MachineFacts(
        device=f"{hardware.device}, {hardware.name}",
        device_reason=hardware.device_reason,
        precision=hardware.precision,
        precision_reason=hardware.precision_reason,
        attention="by matrix products" if keeps else "scaled_dot_product_attention",
        compiled=trainer.compile,
        deterministic=trainer.deterministic,
        threads=hardware.threads,
        ranks=ranks,
    )


def _model_facts(model: ModelConfig) -> console_format.ModelFacts:
    return console_format.ModelFacts(
        n_layer=model.n_layer,
        n_head=model.n_head,
        n_embd=model.n_embd,
        block_size=model.block_size,
        vocab_size=model.vocab_size,
        parameters_by_part=asdict(count_parameters(model)),
        flops_per_token=count_flops_per_token(model),
    )


def _plan_facts(
    directory: Path, start: Start, validated: ValidatedRun, hardware: Hardware, ranks: int
) -> console_format.PlanFacts:
    trainer = validated.config.trainer
    recorded = start.state.environment if start.state and start.directory else None
    is_same_machine = hardware.recorded(ranks) == recorded
    return console_format.PlanFacts(
        total_steps=validated.total_steps,
        done_steps=validated.done.steps,
        batch_size=trainer.batch_size,
        grad_accum=trainer.grad_accum,
        block_size=validated.config.model.block_size,
        total_tokens=validated.total_tokens,
        epochs=validated.epochs,
        train=_files(validated.corpus, validated.corpus.train),
        val=_files(validated.corpus, validated.corpus.val),
        max_epochs=trainer.max_epochs if trainer.max_steps != validated.total_steps else None,
        tokens_per_s=_logged_speed(directory) if is_same_machine else None,
    )


def _logged_speed(directory: Path) -> float | None:
    """The median over the last logged steps of a run, in tokens per second."""
    history = directory / HISTORY
    events = metrics_file.read(history) if history.exists() else []
    speeds = [event["tokens_per_s"] for event in events if "tokens_per_s" in event]
    return median(speeds[-SPEEDS:]) if speeds else None


def end(directory: Path, reporter: Reporter, stopped: signal.Signals | None) -> None:
    """Say what was done, what is on disk, and how to go on."""
    counters, meter = reporter.state.counters, reporter.meter
    steps = meter.steps
    saved = call_with_timeout(DISK_SECONDS, lambda: _saved(directory))
    has_state = saved is None or saved.checkpoints > 0
    recent = counters.unlogged if counters.unlogged.steps else reporter.logged
    facts = console_format.SummaryFacts(
        steps=steps,
        all_steps=counters.step,
        tokens=steps * reporter.validated.tokens_per_step,
        seconds=meter.seconds,
        tokens_per_s=median(meter.speeds) if meter.speeds else None,
        train_loss=recent.mean if recent.steps else counters.train_loss,
        mean_steps=recent.steps,
        val_loss=counters.val_loss,
        best_val_loss=counters.best_val_loss,
        best_step=counters.best_step,
        run_dir=directory,
        saved=saved,
        resume_command=resume_command(directory, reporter.state.group.size)
        if has_state and stopped
        else None,
        sample_command=command("sample", as_typed("ckpt", str(directory))) if has_state else None,
    )
    for line in console_format.summary(facts):
        log.info("%s", line)


def _saved(directory: Path) -> console_format.SavedFacts:
    """Return what a run has on disk. Raises OSError."""
    files = Store(directory / CHECKPOINTS).files()
    largest, free = max((disk_bytes([file]) for file in files), default=0), measure_free(directory)
    left = free // (COPIES * largest) if free < UNKNOWN_FREE and largest else None
    return console_format.SavedFacts(len(files), disk_bytes(files), free, left)


def resume_command(directory: Path, ranks: int = 1) -> str:
    """What to type to go on with the run in `directory` on as many ranks."""
    given = as_typed("hydra.run.dir", str(directory))
    if ranks == 1:
        return command("train", "+resume=latest", given)
    return (
        f"torchrun --standalone --nproc_per_node={ranks} -m gpt2ckpt.train +resume=latest {given}"
    )


def _files(corpus: Corpus, split: TokenStream) -> tuple[console_format.DataFile, ...]:
    """The files that a split takes its tokens from; of a held-out file each split has a part."""
    held = {file.name: file.tokens for file in corpus.files}
    pieces = [(piece.name, len(piece.tokens)) for piece in split.pieces]
    return tuple(console_format.DataFile(name, tokens, held[name]) for name, tokens in pieces)


def _saving(
    directory: Path, validated: ValidatedRun, checkpoint_bytes: int
) -> console_format.SavingFacts:
    checkpoint = validated.config.checkpoint
    epochs = math.ceil(validated.epochs) if checkpoint.save_epochs else 0
    return console_format.SavingFacts(
        enabled=checkpoint.enabled,
        run_dir=directory,
        save_every=checkpoint.save_every,
        keep_rolling=checkpoint.keep_rolling,
        keep_emergency=checkpoint.keep_emergency,
        checkpoint_bytes=checkpoint_bytes,
        keep_epochs=checkpoint.keep_epochs if checkpoint.save_epochs else 0,
        max_kept=most_files(retention_of(checkpoint), epochs),
        reserve_bytes=with_margin(checkpoint_bytes),
        free_bytes=measure_free(directory),
    )
