"""The layout of log lines: labelled rows and aligned columns, at most 80 columns wide.

Only paths and commands may be wider: they are never wrapped, so that they can be copied.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from gpt2ckpt.checkpoint.best import Best
from gpt2ckpt.units import human_duration, perplexity

WIDTH = 80
_LABEL = 13
_NOT_WRAPPED = frozenset({"run", "resume", "sample"})

Row: TypeAlias = tuple[str, str]
"""A label and its text."""


def rows_of(label: str, lines: Sequence[str]) -> list[Row]:
    """Return several lines under one label."""
    return [(label if at == 0 else "", line) for at, line in enumerate(lines)]


def layout(rows: Iterable[Row]) -> list[str]:
    """Return rows as lines, the labels in a column; continuation lines are indented."""
    lines: list[str] = []
    wrapper = textwrap.TextWrapper(
        WIDTH, subsequent_indent=" " * _LABEL, break_long_words=False, break_on_hyphens=False
    )
    for label, text in rows:
        line = label.ljust(_LABEL) + text
        lines += [line] if label in _NOT_WRAPPED else wrapper.wrap(line)
    return lines


def warning_lines(warnings: Iterable[str]) -> list[str]:
    """Return warnings in the layout of the start report."""
    return layout([("warning", warning) for warning in warnings])


def step_line(
    *,
    step: int,
    total_steps: int,
    loss: float,
    lr: float,
    grad_norm: float,
    tokens_per_s: float,
    seconds_left: float,
) -> str:
    """Return the line of one logged step, in columns of constant width.

    The line has at most 80 columns if the steps have at most six digits.

    Args:
        step: Optimizer steps done.
        total_steps: Optimizer steps of the run.
        loss: Mean loss since the last logged step, in nats per token.
        lr: Learning rate of the step.
        grad_norm: Gradient norm before clipping.
        tokens_per_s: Speed of training.
        seconds_left: Estimated time to the last step.
    """
    cells = (
        f"loss {_loss(loss)}",
        f"lr {_learning_rate(lr)}",
        f"grad {_grad_norm(grad_norm)}",
        f"{_rate(tokens_per_s)} tok/s",
        f"ETA {human_duration(seconds_left)}",
    )
    return f"{_progress(step, total_steps)} | {'  '.join(cells)}"


def eval_line(
    *, step: int, total_steps: int, val_loss: float, previous_best: Best | None, seconds: float
) -> str:
    """Return the console line of an evaluation, no wider than that of `step_line`.

    Args:
        step: Optimizer steps done.
        total_steps: Optimizer steps of the run.
        val_loss: Loss in nats per token.
        previous_best: The best earlier evaluation; None if this is the first.
        seconds: Duration of the evaluation.
    """
    best = previous_best
    is_best = best is None or val_loss < best.loss
    cells = (
        f"val  {_loss(val_loss)}",
        f"perplexity {perplexity_text(val_loss)}",
        "best so far" if is_best or best is None else f"best {_loss(best.loss)} at {best.step}",
        human_duration(seconds),
    )
    return f"{_progress(step, total_steps)} | {'  '.join(cells)}"


def _progress(step: int, total_steps: int) -> str:
    return f"step {step:>{len(str(total_steps))}}/{total_steps}"


def _loss(loss: float) -> str:
    """Format a loss: six characters below 1000."""
    return f"{loss:6.4f}" if abs(loss) < 10 else f"{loss:6.3f}"


def _grad_norm(norm: float) -> str:
    """Format a gradient norm: four characters below 10,000."""
    return f"{norm:4.2f}" if norm < 10 else f"{norm:4.1f}" if norm < 100 else f"{norm:4.0f}"


def _learning_rate(lr: float) -> str:
    """Format a learning rate, such as 2.9e-3: six characters from 1e-9 on."""
    digits, _, exponent = f"{lr:.1e}".partition("e")
    return f"{digits}e{int(exponent)}"


def _rate(per_second: float) -> str:
    """Format a rate, such as 3,840, 384k or 1.23M: five characters below a billion."""
    if per_second < 9999.5:
        return f"{per_second:5,.0f}"
    if per_second < 999_500:
        return f"{per_second / 1e3:4.0f}k"
    return f"{per_second / 1e6:4.3g}M"


def perplexity_text(loss: float) -> str:
    """Format the perplexity of a loss in nats per token."""
    value = perplexity(loss)
    return f"{value:,.1f}" if value < 1e3 else f"{value:,.0f}" if value < 1e9 else f"{value:.1e}"
