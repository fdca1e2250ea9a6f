"""What a run tells its user at its start and at its end, in the log."""

import dataclasses
import logging
import signal
from pathlib import Path
from statistics import median

from gpt2ckpt.checkpoint.policy import COPIES, most_files
from gpt2ckpt.checkpoint.reserve import with_margin
from gpt2ckpt.checkpoint.space import disk_bytes, measure_free
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.config.compose import as_typed
from gpt2ckpt.data.corpus import Corpus
from gpt2ckpt.data.tokens import TokenStream
from gpt2ckpt.model.attention import keeps_weights
from gpt2ckpt.model.counts import count_flops_per_token, count_parameters
from gpt2ckpt.runs.command import command
from gpt2ckpt.runs.layout import CHECKPOINTS
from gpt2ckpt.training import report
from gpt2ckpt.training.hardware import DTYPES, Hardware
from gpt2ckpt.training.loop import Loop
from gpt2ckpt.training.preparation import Prepared
from gpt2ckpt.training.saving import retention_of

log = logging.getLogger(__name__)


def start(
    directory: Path,
    prepared: Prepared,
    hardware: Hardware,
    *,
    done_steps: int,
    checkpoint_bytes: int,
    ranks: int = 1,
) -> None:
    """Say what is about to be done, on what, and where it goes."""
    config = prepared.config
    model = report.ModelFacts(
        **{key: getattr(config.model, key) for key in ("n_layer", "n_head", "n_embd")},
        block_size=config.model.block_size,
        vocab_size=config.model.vocab_size,
        parameters_by_part=dataclasses.asdict(count_parameters(config.model)),
        flops_per_token=count_flops_per_token(config.model),
    )
    dtype = DTYPES[hardware.precision]
    keeps = keeps_weights(hardware.device.type, dtype, config.model.block_size)
    machine = report.MachineFacts(
        device=f"{hardware.device}, {hardware.name}",
        device_reason=hardware.device_reason,
        precision=hardware.precision,
        precision_reason=hardware.precision_reason,
        attention="by matrix products" if keeps else "scaled_dot_product_attention",
        compiled=config.trainer.compile,
        deterministic=config.trainer.deterministic,
        threads=hardware.threads,
        ranks=ranks,
    )
    plan = report.PlanFacts(
        total_steps=prepared.total_steps,
        done_steps=done_steps,
        batch_size=config.trainer.batch_size,
        grad_accum=config.trainer.grad_accum,
        block_size=config.model.block_size,
        steps_per_epoch=prepared.blocks_per_epoch / prepared.blocks_per_step,
        train=_files(prepared.corpus, prepared.corpus.train),
        val=_files(prepared.corpus, prepared.corpus.val),
    )
    saving = _saving(directory, prepared, checkpoint_bytes)
    for line in report.start_report(machine, model, plan, saving):
        log.info("%s", line)
    warmup, steps = config.schedule.warmup_steps, prepared.total_steps
    if warmup > steps:
        share = prepared.schedule(steps - 1)
        log.warning(
            "the warm-up of %d steps is longer than the run: the learning rate only reaches %.0f%% "
            "of what is set (schedule.warmup_steps)",
            *(warmup, 100 * share),
        )


def end(directory: Path, loop: Loop, stopped: signal.Signals | None) -> None:
    """Say what was done, what is on disk, and how to go on."""
    counters, files = loop.state.counters, Store(directory / CHECKPOINTS).files()
    sizes = [file.stat().st_size for file in files]
    recent = counters.unlogged if counters.unlogged.steps else loop.logged
    free, steps = measure_free(directory), loop.meter.steps(counters.step)
    facts = report.SummaryFacts(
        steps=steps,
        all_steps=counters.step,
        tokens=steps * loop.tokens_per_step,
        seconds=loop.meter.seconds,
        tokens_per_s=median(loop.meter.speeds) if loop.meter.speeds else 0.0,
        train_loss=recent.mean if recent.steps else counters.train_loss,
        mean_steps=recent.steps,
        val_loss=counters.val_loss,
        best_val_loss=counters.best_val_loss,
        best_step=counters.best_step,
        run_dir=directory,
        checkpoints=len(files),
        disk_bytes=disk_bytes(files),
        free_bytes=free,
        saves_left=free // (COPIES * max(sizes)) if any(sizes) else None,
        resume_command=resume_command(directory, loop.team.size) if files and stopped else None,
        sample_command=command("sample", as_typed("ckpt", str(directory))) if files else None,
    )
    for line in report.summary(facts):
        log.info("%s", line)


def resume_command(directory: Path, ranks: int = 1) -> str:
    """What to type to go on with the run in `directory` on as many ranks."""
    given = as_typed("hydra.run.dir", str(directory))
    if ranks == 1:
        return command("train", "+resume=latest", given)
    return (
        f"torchrun --standalone --nproc_per_node={ranks} -m gpt2ckpt.train +resume=latest {given}"
    )


def _files(corpus: Corpus, split: TokenStream) -> tuple[report.DataFile, ...]:
    """The files that a split takes its tokens from; of a held-out file each split has a part."""
    held = {file.name: file.tokens for file in corpus.files}
    pieces = [(piece.name, len(piece.tokens)) for piece in split.pieces]
    return tuple(report.DataFile(name, tokens, held[name]) for name, tokens in pieces)


def _saving(directory: Path, prepared: Prepared, checkpoint_bytes: int) -> report.SavingFacts:
    checkpoint = prepared.config.checkpoint
    blocks = prepared.total_steps * prepared.blocks_per_step
    epochs = -(-blocks // prepared.blocks_per_epoch) if checkpoint.save_epochs else 0
    return report.SavingFacts(
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
