"""Log lines: aligned columns, at most 80 columns wide, for numbers of any size."""

import math

import pytest

from gpt2ckpt.checkpoint.best import Best
from gpt2ckpt.training.console_format import eval_line, layout, step_line, warning_lines
from gpt2ckpt.units import human_bytes, human_count, human_duration

STEP = {
    "step": 120,
    "total_steps": 480,
    "loss": 5.12341,
    "lr": 2.9e-3,
    "grad_norm": 0.8312,
    "tokens_per_s": 3840.2,
    "seconds_left": 93.7,
}


def evaluation(step, total_steps, val_loss, best, seconds):
    return eval_line(
        step=step,
        total_steps=total_steps,
        val_loss=val_loss,
        previous_best=Best(*best) if best else None,
        seconds=seconds,
    )


def test_step_line_shows_loss_rate_norm_speed_and_time_left():
    assert step_line(**STEP) == (
        "step 120/480 | loss 5.1234  lr 2.9e-3  grad 0.83  3,840 tok/s  ETA 1m 34s"
    )


def test_step_lines_are_aligned():
    first = {"step": 1, "loss": 10.8254, "lr": 1e-4, "grad_norm": 12.34, "tokens_per_s": 812.0}
    line = step_line(**{**STEP, **first, "seconds_left": math.nan})
    assert line == "step   1/480 | loss 10.825  lr 1.0e-4  grad 12.3    812 tok/s  ETA ?"
    for label in ("loss", "lr", "grad", "tok/s", "ETA"):
        assert line.index(label) == step_line(**STEP).index(label)


@pytest.mark.parametrize(
    ("tokens_per_s", "text"),
    [
        (1_234_567, "1.23M"),
        (99_999_999, " 100M"),
        (999_499, " 999k"),
        (10_000, "  10k"),
        (9_999, "9,999"),
    ],
)
def test_step_line_of_large_run_fits_80_columns(tokens_per_s, text):
    big = {"step": 599_999, "total_steps": 600_000, "tokens_per_s": tokens_per_s}
    line = step_line(**{**STEP, **big, "grad_norm": 1234.5, "seconds_left": 1.1e6})
    assert line == (
        f"step 599999/600000 | loss 5.1234  lr 2.9e-3  grad 1234  {text} tok/s  ETA 12d 17h"
    )
    assert len(line) <= 80
    assert len(evaluation(599_999, 600_000, 8.8795, (8.8791, 599_000), 42.0)) <= 80


def test_step_line_shows_non_finite_loss():
    line = step_line(**{**STEP, "loss": math.nan, "grad_norm": math.inf})
    assert "| loss    nan  lr" in line and "  grad  inf  " in line


@pytest.mark.parametrize(
    ("best", "text"),
    [
        (None, "best so far"),
        ((5.3, 50), "best so far"),
        ((5.1, 50), "best 5.1000 at 50"),
        ((5.2345, 50), "best 5.2345 at 50"),
    ],
)
def test_eval_line_names_the_best_loss(best, text):
    line = evaluation(100, 480, 5.2345, best, 3.2)
    assert line == f"step 100/480 | val  5.2345  perplexity 187.6  {text}  3s"


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (0.0, "1.0"),
        (10.8, "49,021"),
        (25.0, "7.2e+10"),
        (709.0, "8.2e+307"),
        (710.0, "inf"),
        (1e6, "inf"),
        (math.nan, "nan"),
    ],
)
def test_eval_line_shows_perplexity_of_any_loss(loss, text):
    assert f"  perplexity {text}  " in evaluation(1, 2, loss, None, 0.0)


def test_warnings_have_the_layout_of_the_report():
    lines = warning_lines(["word " * 30])
    assert lines[0].startswith("warning      word word") and lines[1].startswith(" " * 13 + "word")
    assert max(map(len, lines)) <= 80


def test_layout_wraps_text_but_not_commands_and_paths():
    command = "python -m gpt2ckpt.train " + "optimizer.lr=3e-4 " * 20 + "+resume=latest"
    assert layout([("resume", command)]) == [f"resume       {command}"]
    assert layout([("run", "/very/long" * 15)]) == ["run          " + "/very/long" * 15]
    assert max(map(len, layout([("compute", "word " * 30)]))) <= 80


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (999_949, "999.9 KB"),
        (999_950, "1.0 MB"),
        (2_147_483_648, "2.1 GB"),
        (1.5e12, "1.5 TB"),
    ],
)
def test_human_bytes(count, text):
    assert human_bytes(count) == text


def test_human_count():
    counts = (7, 999.6, 1234, 124_439_808, 8.5e11)
    assert [human_count(count) for count in counts] == [
        "7 ",
        "1.0 k",
        "1.2 k",
        "124.4 M",
        "850.0 G",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.3, "<1s"),
        (86_400 * (365 * 6 + 120), "6y 120d"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (3599, "59m 59s"),
        (3600, "1h 00m"),
        (86_400 * 3 + 3600 * 4.5, "3d 04h"),
        (math.inf, "?"),
        (math.nan, "?"),
    ],
)
def test_human_duration(seconds, text):
    assert human_duration(seconds) == text
