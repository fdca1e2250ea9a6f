import itertools
import math
import os
import pty
import subprocess
import sys
import termios
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2ckpt.checkpoint.best import Best
from gpt2ckpt.files.disk_usage import UNKNOWN_FREE
from gpt2ckpt.training.console_format import (
    DataFile,
    MachineFacts,
    MemoryFacts,
    ModelFacts,
    PlanFacts,
    SavedFacts,
    SavingFacts,
    SummaryFacts,
    eval_line,
    start_report,
    step_line,
    summary,
    warning_lines,
)
from gpt2ckpt.units import human_bytes, human_count, human_duration

MACHINE = MachineFacts(
    device="cpu",
    device_reason="no CUDA or MPS device found",
    precision="bfloat16",
    precision_reason="this CPU multiplies bfloat16 in hardware",
    attention="scaled dot product",
    compiled=False,
    deterministic=True,
    threads=2,
)
MODEL = ModelFacts(
    n_layer=4,
    n_head=4,
    n_embd=128,
    block_size=128,
    vocab_size=50257,
    parameters_by_part={
        "token embedding (tied to output)": 6_432_896,
        "positions": 16_384,
        "blocks": 793_088,
        "final norm": 256,
    },
    flops_per_token=44_000_000,
)
PLAN = PlanFacts(
    total_steps=480,
    done_steps=0,
    batch_size=8,
    grad_accum=1,
    block_size=128,
    total_tokens=491_520,
    epochs=3.93,
    train=(DataFile("embedded", 125_113, 139_015),),
    val=(DataFile("embedded", 13_902, 139_015),),
)
MEMORY = MemoryFacts(needed=115_900_000, total=8_300_000_000)
SAVING = SavingFacts(
    enabled=True,
    run_dir=Path("outputs/gpt2_run_20260102_030405"),
    save_every=250,
    keep_rolling=10,
    keep_emergency=10,
    keep_epochs=10,
    checkpoint_bytes=86_911_488,
    max_kept=38,
    reserve_bytes=89_698_293,
    free_bytes=35_200_000_000,
)
SUMMARY = SummaryFacts(
    steps=480,
    all_steps=480,
    tokens=491_520,
    seconds=134.2,
    tokens_per_s=3839.6,
    train_loss=4.2031,
    mean_steps=10,
    val_loss=3.2518,
    best_val_loss=3.2104,
    best_step=400,
    run_dir=Path("outputs/gpt2_run_20260102_030405"),
    saved=SavedFacts(3, 173_822_976, 35_000_000_000, 302),
    resume_command="python -m gpt2ckpt.train +resume=outputs/gpt2_run_20260102_030405",
    sample_command="python -m gpt2ckpt.sample ckpt=outputs/gpt2_run_20260102_030405",
)
STEP = {
    "step": 120,
    "total_steps": 480,
    "loss": 5.12341,
    "lr": 2.9e-3,
    "grad_norm": 0.8312,
    "tokens_per_s": 3840.2,
    "seconds_left": 93.7,
}


FACTS = {"machine": MACHINE, "model": MODEL, "plan": PLAN, "memory": MEMORY, "saving": SAVING}


def report(**changed):
    return start_report(**{**FACTS, **changed})


def evaluation(step, total_steps, val_loss, best, seconds):
    return eval_line(
        step=step,
        total_steps=total_steps,
        val_loss=val_loss,
        previous_best=Best(*best) if best else None,
        seconds=seconds,
    )


def row(label, **changed):
    """The text under a label, unwrapped."""
    lines = report(**changed)
    at = next(at for at, line in enumerate(lines) if line.startswith(label.ljust(13)))
    more = itertools.takewhile(lambda line: line.startswith(" " * 13), lines[at + 1 :])
    return " ".join([lines[at][13:], *(line.strip() for line in more)])


def test_the_start_of_a_run():
    expected = """\
        device       cpu (no CUDA or MPS device found)
        precision    bfloat16 (this CPU multiplies bfloat16 in hardware)
        compute      attention scaled dot product, compile off, deterministic on, 2
                     threads
        model        GPT-2, 4 layers x 128, 4 heads, context 128, vocabulary 50,257
        parameters   7,242,624: token embedding (tied to output) 6,432,896, positions
                     16,384, blocks 793,088, final norm 256
        work         44.0 MFLOP per token, forward and backward
        step         8 blocks of 128 = 1,024 tokens (micro-batch 8, accumulation 1)
        training     480 steps, 491,520 tokens, 3.93 epochs, 0.07 tokens per parameter
        time         not known before the first steps
        train data   embedded: 125,113 of 139,015 tokens, 977 blocks
        val data     embedded: 13,902 of 139,015 tokens, 108 blocks
        memory       at least 115.9 MB of 8.3 GB: weights, gradients, optimizer state;
                     activations come on top
        run          outputs/gpt2_run_20260102_030405
        checkpoints  every 250 steps and at the end; keeps 10 rolling, 10 emergency, 10
                     epoch files
        disk         86.9 MB a checkpoint, at most 3.4 GB for 38, 35.2 GB free"""
    assert report() == textwrap.dedent(expected).splitlines()


def test_several_ranks_and_a_resumed_run():
    resumed = replace(PLAN, done_steps=250, tokens_per_s=1024.0)
    machine = replace(MACHINE, ranks=2, threads=1)
    assert row("compute", machine=machine).endswith("deterministic on, 1 thread, 2 ranks")
    assert row("training", plan=resumed).startswith("480 steps (250 done), 491,520 tokens, 3.93 e")
    assert row("time", plan=resumed) == (
        "about 3m 50s for 230 steps at 1,024 tok/s, as logged last, plus evaluations and saves"
    )


def test_a_run_that_ends_by_epochs_shows_the_number_that_was_given():
    assert ", 3 epochs, " in row("training", plan=replace(PLAN, epochs=3.0051, max_epochs=3))
    assert ", 1 epoch, " in row("training", plan=replace(PLAN, epochs=1.02, max_epochs=1))


def test_weights_to_start_from_are_named():
    lines = report(weights=["skipped a.pt: damaged", "b.pt (nanoGPT checkpoint): 5 tensors"])
    at = lines.index("weights      skipped a.pt: damaged")
    assert lines[at + 1] == "             b.pt (nanoGPT checkpoint): 5 tensors"


def test_a_preview_has_no_line_on_a_directory_that_is_not_made():
    assert not any(line.startswith("run ") for line in report(saving=replace(SAVING, run_dir=None)))


def test_a_file_system_that_counts_no_free_space_is_not_given_a_number():
    assert row("disk", saving=replace(SAVING, free_bytes=UNKNOWN_FREE)).endswith(
        ", free space not known"
    )


def test_large_numbers_have_separators():
    big = replace(PLAN, total_steps=600_000, total_tokens=294_912_000_000, epochs=2_360_655.737)
    assert row("training", plan=big) == (
        "600,000 steps, 294,912,000,000 tokens, 2,360,655.74 epochs, 40,718.94 tokens per parameter"
    )


def test_many_data_files_are_summed_and_the_first_named():
    files = tuple(DataFile(f"shard_{at}.bin", 1_000_000, 1_000_000) for at in range(1200))
    lines = report(plan=replace(PLAN, train=files))
    at = next(at for at, line in enumerate(lines) if line.startswith("train data"))
    assert lines[at : at + 5] == [
        "train data   1,200 files: 1,200,000,000 tokens, 9,374,999 blocks",
        "             shard_0.bin: 1,000,000 tokens",
        "             shard_1.bin: 1,000,000 tokens",
        "             shard_2.bin: 1,000,000 tokens",
        "             and 1,197 more",
    ]


def test_saving_at_the_end_only_and_never():
    only_at_the_end = row("checkpoints", saving=replace(SAVING, save_every=0, keep_epochs=None))
    assert only_at_the_end == "at the end; keeps 10 rolling, 10 emergency, all epoch files"
    never = row("checkpoints", saving=replace(SAVING, enabled=False))
    assert never == "none, so a crash loses this run (checkpoint.enabled=false)"


def test_no_line_but_a_path_is_wider_than_80_columns():
    big = replace(
        MODEL,
        n_layer=48,
        n_embd=1600,
        n_head=25,
        parameters_by_part={f"part {at}": 1_557_611_200 for at in range(9)},
    )
    plan = replace(
        PLAN, total_steps=19_073_000, done_steps=18_000_000, batch_size=64, grad_accum=40
    )
    saving = replace(SAVING, run_dir=Path("/very/long" * 15), checkpoint_bytes=18_700_000_000)
    lines = report(model=big, plan=plan, saving=saving)
    assert [line[:13] for line in lines if len(line) > 80] == ["run          "]
    assert f"run          {saving.run_dir}" in lines


def test_a_logged_step():
    assert step_line(**STEP) == (
        "step 120/480 | loss 5.1234  lr 2.9e-3  grad 0.83  3,840 tok/s  ETA 1m 34s"
    )


def test_steps_stand_in_columns():
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
def test_steps_of_a_big_run_fit_80_columns(tokens_per_s, text):
    big = {"step": 599_999, "total_steps": 600_000, "tokens_per_s": tokens_per_s}
    line = step_line(**{**STEP, **big, "grad_norm": 1234.5, "seconds_left": 1.1e6})
    assert line == (
        f"step 599999/600000 | loss 5.1234  lr 2.9e-3  grad 1234  {text} tok/s  ETA 12d 17h"
    )
    assert len(line) <= 80
    assert len(evaluation(599_999, 600_000, 8.8795, (8.8791, 599_000), 42.0)) <= 80


def test_a_loss_that_is_not_finite_is_shown():
    line = step_line(**{**STEP, "loss": math.nan, "grad_norm": math.inf})
    assert "| loss    nan  lr" in line and "  grad  inf  " in line


@pytest.mark.parametrize(
    ("best", "words"),
    [
        (None, "best so far"),
        ((5.3, 50), "best so far"),
        ((5.1, 50), "best 5.1000 at 50"),
        ((5.2345, 50), "best 5.2345 at 50"),
    ],
)
def test_an_evaluation(best, words):
    line = evaluation(100, 480, 5.2345, best, 3.2)
    assert line == f"step 100/480 | val  5.2345  perplexity 187.6  {words}  3s"


@pytest.mark.parametrize(
    ("loss", "words"),
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
def test_perplexity_of_any_loss(loss, words):
    assert f"  perplexity {words}  " in evaluation(1, 2, loss, None, 0.0)


def test_the_summary():
    assert "\n".join(summary(SUMMARY)) == textwrap.dedent("""\
        trained      480 steps, 491,520 tokens in 2m 14s, median 3,840 tok/s
        loss         train 4.2031 (mean of 10 steps)
                     val 3.2518 (perplexity 25.8), best val 3.2104 at step 400
        run          outputs/gpt2_run_20260102_030405
        saved        3 files, 173.8 MB on disk, 35.0 GB free: 302 more saves fit
        go on        python -m gpt2ckpt.train +resume=outputs/gpt2_run_20260102_030405
        sample       python -m gpt2ckpt.sample ckpt=outputs/gpt2_run_20260102_030405""")


def test_the_summary_of_a_process_that_went_on():
    line = summary(replace(SUMMARY, steps=17, all_steps=30, tokens=1_088))[0]
    assert line.startswith("trained      17 steps (30 in all), 1,088 tokens in ")


def test_the_summary_of_a_run_without_losses_or_checkpoints():
    nothing = {"train_loss": None, "val_loss": None, "best_val_loss": None, "best_step": None}
    saved = SavedFacts(1, 173_822_976, 35_000_000_000, None)
    bare = replace(SUMMARY, **nothing, saved=saved, resume_command=None, sample_command=None)
    lines = summary(bare)
    assert lines[1] == "loss         none"
    assert lines[3:] == ["saved        1 file, 173.8 MB on disk, 35.0 GB free"]


def test_the_summary_of_a_process_that_went_back_to_an_older_step():
    line = summary(replace(SUMMARY, steps=37, all_steps=30, tokens=2_368))[0]
    assert line.startswith("trained      37 steps (30 of them count), 2,368 tokens in ")


def test_the_summary_of_a_process_that_logged_no_step_has_no_speed():
    assert summary(replace(SUMMARY, tokens_per_s=None))[0].endswith("491,520 tokens in 2m 14s")


def test_warnings_are_laid_out_as_the_report():
    lines = warning_lines(["word " * 30])
    assert lines[0].startswith("warning      word word") and lines[1].startswith(" " * 13 + "word")
    assert max(map(len, lines)) <= 80


def test_the_summary_where_the_file_system_does_not_answer():
    saved = SavedFacts(2, 1_000_000, UNKNOWN_FREE, None)
    assert summary(replace(SUMMARY, saved=saved))[4] == (
        "saved        2 files, 1.0 MB on disk, free space not known"
    )
    lines = summary(replace(SUMMARY, saved=None))
    assert lines[4] == "saved        not known: the file system of the run does not answer"


def test_commands_are_never_broken():
    command = "python -m gpt2ckpt.train " + "optimizer.lr=3e-4 " * 20 + "+resume=latest"
    assert f"go on        {command}" in summary(replace(SUMMARY, resume_command=command))


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
def test_bytes(count, text):
    assert human_bytes(count) == text


def test_counts():
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
def test_durations(seconds, text):
    assert human_duration(seconds) == text


TRAINING = """
import logging, sys
from gpt2ckpt.training.progress import open_progress
logging.basicConfig(stream=sys.stdout, level="INFO", format="%(message)s")
bar = open_progress(10, done_steps=4)
for step in range(5, 11):
    bar.update(step)
    logging.info("line %d", step)
bar.close()
logging.info("end")
"""
LINES = [*(f"line {step}" for step in range(5, 11)), "end"]


LONG_STEP = """
import logging, sys, time
from gpt2ckpt.training import progress
logging.basicConfig(stream=sys.stdout, level="INFO", format="%(message)s")
progress.LONG = progress.DRAW_EVERY = 0.01
bar = progress.open_progress(10, done_steps=4)
bar.note("compiling")
time.sleep(0.2)
bar.part(1, 1)
bar.part(3, 64)
time.sleep(0.2)
bar.update(5)
if len(sys.argv) > 1:
    progress.tqdm.refresh = lambda *_, **__: time.sleep(600) if sys.argv[1] == "hangs" else 1 / 0
    logging.info("a line")
    for step in range(6, 11):
        time.sleep(0.02)
        bar.update(step)
bar.close()
"""


def test_a_bar_shows_what_a_long_step_is_at():
    _, drawn = on_a_terminal(capture_stdout=True, script=LONG_STEP)
    assert drawn.index("compiling") < drawn.index("micro-batch 3/64")
    assert "micro-batch 1/1" not in drawn


@pytest.mark.parametrize("way", ["raises", "hangs"])
def test_a_bar_that_cannot_be_drawn_is_not_drawn(way):
    _, drawn = on_a_terminal(capture_stdout=False, script=LONG_STEP, words=[way])
    assert "micro-batch 3/64" in drawn and "a line" in drawn and "Error" not in drawn


def test_in_a_pipe_there_is_no_bar():
    done = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True)
    assert (done.stdout.splitlines(), done.stderr) == (LINES, "")


def on_a_terminal(capture_stdout, script=TRAINING, words=()):
    """Run a script on a terminal of 80 columns: what came through the pipe, what was drawn."""
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 80))
    stdout = subprocess.PIPE if capture_stdout else side
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, stdout=stdout, stderr=side, text=True, timeout=60)
    drawn = os.read(main, 100_000).decode()
    os.close(side)
    os.close(main)
    return done.stdout, drawn


def test_a_bar_on_the_terminal_leaves_piped_lines_plain():
    piped, drawn = on_a_terminal(capture_stdout=True)
    assert piped.splitlines() == LINES
    assert "4/10" in drawn  # the bar starts where the resumed run does


def test_on_a_terminal_log_lines_stand_whole_above_the_bar():
    _, drawn = on_a_terminal(capture_stdout=False)
    assert "4/10" in drawn
    # What a terminal shows of a line is what was written since the last carriage return.
    shown = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in drawn.split("\n")]
    assert shown[:-1] == LINES
    assert shown[-1].strip() == ""  # and nothing of the bar remains
