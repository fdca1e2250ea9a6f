"""The summary at the end of a run."""

import logging
import signal
from pathlib import Path
from statistics import median

from gpt2ckpt.checkpoint.retention import COPIES
from gpt2ckpt.checkpoint.state import LossSum
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.config.compose import as_typed
from gpt2ckpt.files.disk_usage import UNKNOWN_FREE, disk_bytes, free_space_text, measure_free
from gpt2ckpt.runs.command import command, with_plugins
from gpt2ckpt.runs.layout import CHECKPOINTS
from gpt2ckpt.training.console_format import Row, layout, perplexity_text, rows_of
from gpt2ckpt.training.reporting import Reporter
from gpt2ckpt.training.state import Counters
from gpt2ckpt.training.throughput import Meter
from gpt2ckpt.units import human_bytes, human_duration, plural
from gpt2ckpt.worker import call_with_timeout

log = logging.getLogger(__name__)
DISK_SECONDS = 5.0  # the summary waits at most this long for the file system


def log_end(directory: Path, reporter: Reporter, stopped: signal.Signals | None) -> None:
    """Log what was trained and saved, and the commands to resume and to sample."""
    saved = call_with_timeout(DISK_SECONDS, lambda: _saved(directory))
    for line in summary(directory, reporter, saved, has_stopped=stopped is not None):
        log.info("%s", line)


def summary(
    directory: Path, reporter: Reporter, saved: tuple[int, str] | None, *, has_stopped: bool
) -> list[str]:
    """Return the summary lines that a run prints at its end.

    Args:
        directory: The run directory.
        reporter: The reporter of the training loop that ended.
        saved: From `_saved`; None if the file system did not answer.
        has_stopped: Whether a signal stopped the run, so that it can be resumed.
    """
    state = reporter.state
    recent = state.counters.unlogged if state.counters.unlogged.steps else reporter.logged
    text = saved[1] if saved else "not known: the file system of the run does not answer"
    rows = [
        trained_row(reporter.meter, state.counters.step, reporter.validated.tokens_per_step),
        *loss_rows(state.counters, recent),
        ("run", str(directory)),
        ("saved", text),
    ]
    if saved is None or saved[0]:
        if has_stopped:
            rows.append(("resume", resume_command(directory, state.group.size)))
        rows.append(("sample", command("sample", *with_plugins(as_typed("ckpt", str(directory))))))
    return layout(rows)


def trained_row(meter: Meter, run_steps: int, tokens_per_step: int) -> Row:
    """Return the row on the work of this process, after `run_steps` steps of the run."""
    in_all = f" ({run_steps:,} in all)" if run_steps > meter.steps else ""
    if run_steps < meter.steps:  # after a rollback
        in_all = f" ({run_steps:,} of them kept)"
    speed = f", median {median(meter.speeds):,.0f} tok/s" if meter.speeds else ""
    text = (
        f"{plural(meter.steps, 'step')}{in_all}, {meter.steps * tokens_per_step:,} tokens in "
        f"{human_duration(meter.seconds)}{speed}"
    )
    return "trained", text


def loss_rows(counters: Counters, recent: LossSum) -> list[Row]:
    """Return the rows on the training loss, the mean over `recent` steps, and the validation."""
    lines, val = [], []
    train = recent.mean if recent.steps else counters.train_loss
    if train is not None:
        over = f"mean of the last {recent.steps:,} steps" if recent.steps > 1 else "of one step"
        lines.append(f"train {train:.4f} ({over})")
    if counters.val_loss is not None:
        val.append(f"val {counters.val_loss:.4f} (perplexity {perplexity_text(counters.val_loss)})")
    if counters.best is not None:
        val.append(f"best val {counters.best.loss:.4f} at step {counters.best.step:,}")
    if val:
        lines.append(", ".join(val))
    return rows_of("loss", lines or ["none"])


def _saved(directory: Path) -> tuple[int, str]:
    """Return the number of checkpoints on disk, and their size as text. Raises OSError."""
    files = Store(directory / CHECKPOINTS).files()
    largest = max((disk_bytes([file]) for file in files), default=0)
    return len(files), saved_text(
        files=len(files), used=disk_bytes(files), largest=largest, free=measure_free(directory)
    )


def saved_text(*, files: int, used: int, largest: int, free: int) -> str:
    """Return the disk usage of the checkpoints as text; all sizes are in bytes."""
    left = f": {free // (COPIES * largest):,} more saves fit" if largest else ""
    return (
        f"{plural(files, 'file')}, {human_bytes(used)} on disk, "
        f"{free_space_text(free)}{left if free < UNKNOWN_FREE else ''}"
    )


def resume_command(directory: Path, ranks: int = 1) -> str:
    """Return the command that resumes the run in `directory` on `ranks` ranks."""
    given = as_typed("hydra.run.dir", str(directory))
    if ranks == 1:
        return command("train", *with_plugins("+resume=latest", given))
    arguments = " ".join(with_plugins("+resume=latest", given))
    return f"torchrun --standalone --nproc_per_node={ranks} -m gpt2ckpt.train {arguments}"
