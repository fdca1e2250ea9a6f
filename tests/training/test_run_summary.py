"""The start report, built from the objects of a run, and the summary at the end."""

import errno
import logging
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import start_of, train

from gpt2ckpt.checkpoint.event_sink import NO_EVENTS
from gpt2ckpt.checkpoint.state import LossSum
from gpt2ckpt.config.schema import (
    AdamWConfig,
    CheckpointConfig,
    CosineConfig,
    ModelConfig,
    TrainConfig,
    TrainerConfig,
)
from gpt2ckpt.data.corpus import Corpus, CorpusFile
from gpt2ckpt.data.digest import Contents
from gpt2ckpt.data.tokens import Piece, TokenStream
from gpt2ckpt.files.disk_usage import UNKNOWN_FREE
from gpt2ckpt.parallel.process_group import SingleProcess
from gpt2ckpt.training import run_summary, start_report
from gpt2ckpt.training.console_format import Row, layout, rows_of
from gpt2ckpt.training.hardware import Hardware
from gpt2ckpt.training.reporting import Reporter
from gpt2ckpt.training.run_summary import saved_text, summary
from gpt2ckpt.training.start_report import (
    checkpoint_rows,
    data_rows,
    length_rows,
    machine_rows,
    memory_row,
    model_rows,
    optimizer_rows,
)
from gpt2ckpt.training.state import Counters
from gpt2ckpt.training.throughput import Meter
from gpt2ckpt.training.validate_run import CompletedWork, ValidatedRun, validate_run

CONFIG = TrainConfig(
    model=ModelConfig(n_layer=4, n_head=4, n_embd=128, block_size=128),
    trainer=TrainerConfig(max_steps=480, batch_size=8),
    optimizer=AdamWConfig(),
    schedule=CosineConfig(),
    checkpoint=CheckpointConfig(keep_epochs=10),
)
HARDWARE = Hardware(
    torch.device("cpu"), "no GPU is available", "float32", "as configured", threads=2
)


def stream(*names_and_tokens: tuple[str, int]) -> TokenStream:
    tokens = {count: np.zeros(count, np.uint16) for _, count in names_and_tokens}
    return TokenStream([Piece(name, tokens[count]) for name, count in names_and_tokens], 50257)


CORPUS = Corpus(
    train=stream(("embedded", 125_113)),
    val=stream(("embedded", 13_902)),
    digest="",
    contents=Contents([]),
    files=(CorpusFile("embedded", 1, 139_015),),
    description="",
)
RUN = ValidatedRun(
    config=CONFIG,
    frozen={},
    pretrained=None,
    corpus=CORPUS,
    blocks_per_epoch=977,
    total_steps=480,
    schedule=lambda step: 1.0,
)
SIZE, FREE = 86_911_488, 35_200_000_000  # bytes of a checkpoint, and free bytes


def with_trainer(run: ValidatedRun, **changed: Any) -> ValidatedRun:
    return replace(run, config=replace(CONFIG, trainer=replace(CONFIG.trainer, **changed)))


def with_checkpoint(**changed: Any) -> ValidatedRun:
    return replace(RUN, config=replace(CONFIG, checkpoint=replace(CONFIG.checkpoint, **changed)))


def test_report_describes_the_run() -> None:
    rows = [
        *machine_rows(HARDWARE, CONFIG, ranks=1),
        *model_rows(CONFIG.model),
        *optimizer_rows(CONFIG),
        *length_rows(RUN, None),
        *data_rows("train data", CORPUS, CORPUS.train, 128),
        *data_rows("val data", CORPUS, CORPUS.val, 128),
        memory_row(115_900_000, 8_300_000_000),
        *checkpoint_rows(RUN, SIZE, FREE),
    ]
    expected = """\
        precision    float32 (as configured)
        compute      attention scaled_dot_product_attention, compile off, deterministic
                     on, 2 threads
        model        GPT-2, 4 layers x 128, 4 heads, context 128, vocabulary 50,257
        parameters   7,242,624: embedding 6,432,896, position 16,384, attention 264,192,
                     mlp 526,848, norm 2,304
        work         44.1 MFLOP per token, forward and backward
        optimizer    adamw, lr 0.003, schedule cosine, warm-up 40 steps
        step         8 blocks of 128 = 1,024 tokens (micro-batch 8, accumulation 1)
        training     480 steps, 491,520 tokens, 3.93 epochs, 0.07 tokens per parameter
        time         not known before the first steps
        train data   embedded: 125,113 of 139,015 tokens, 977 blocks
        val data     embedded: 13,902 of 139,015 tokens, 108 blocks
        memory       at least 115.9 MB of 8.3 GB: weights, gradients, optimizer state;
                     activations come on top
        checkpoints  every 250 steps and at the end; keeps 10 rolling, 10 emergency, 10
                     epoch files
        disk         86.9 MB a checkpoint, at most 2.9 GB for 32, 35.2 GB free"""
    lines = layout(rows)
    assert lines[1:] == textwrap.dedent(expected).splitlines()
    assert lines[0].startswith("device       cpu, ") and "(no GPU is available)" in lines[0]


def test_report_of_a_real_run_has_every_row(token_data: Any, tmp_path: Path) -> None:
    start = start_of([*token_data.overrides, "trainer.max_steps=2"], tmp_path / "run")
    validated = validate_run(start)
    lines, _ = start_report.plan(tmp_path / "run", start, validated, HARDWARE, 1)
    labels = [line[:13].strip() for line in lines if line[0] != " "]
    assert labels == [
        *[
            "device",
            "precision",
            "compute",
            "model",
            "parameters",
            "work",
            "optimizer",
            "step",
            "training",
        ],
        *["time", "train data", "val data", "memory", "run", "checkpoints", "disk"],
    ]
    assert f"run          {tmp_path / 'run'}" in lines
    preview, _ = start_report.plan(tmp_path / "run", start, validated, HARDWARE, 1, is_preview=True)
    assert not any(line.startswith("run ") for line in preview)


def test_report_names_every_learning_rate(token_data: Any, tmp_path: Path) -> None:
    overrides = [*token_data.overrides, "optimizer=muon", "optimizer.lr=6e-5"]
    config = validate_run(start_of(overrides, tmp_path / "run")).config
    [(_, text)] = optimizer_rows(config)
    assert text == "muon, lr 6e-05, adamw_lr 0.003, schedule cosine, warm-up 5 steps"


def test_report_of_resumed_run_on_several_ranks() -> None:
    resumed = replace(RUN, done=CompletedWork(steps=250, blocks=2000, tokens=256_000))
    machine = dict(machine_rows(replace(HARDWARE, threads=1), CONFIG, ranks=2))
    assert machine["compute"].endswith("deterministic on, 1 thread, 2 ranks")
    length = dict(length_rows(resumed, 1024.0))
    assert length["training"].startswith("480 steps (250 done), 491,520 tokens, 3.93 e")
    assert length["time"] == (
        "about 3m 50s for 230 steps at 1,024 tok/s (last logged), plus evaluations and saves"
    )


def test_report_shows_max_epochs_that_ends_the_run() -> None:
    by_epochs = with_trainer(RUN, max_steps=None, max_epochs=3)
    assert ", 3 epochs, " in dict(length_rows(by_epochs, None))["training"]
    one = with_trainer(RUN, max_steps=None, max_epochs=1)
    assert ", 1 epoch, " in dict(length_rows(one, None))["training"]


def test_disk_row_without_known_free_space() -> None:
    disk = dict(checkpoint_rows(RUN, SIZE, UNKNOWN_FREE))["disk"]
    assert disk.endswith(", free space not known")


def test_large_numbers_have_separators() -> None:
    big = replace(with_trainer(RUN, batch_size=3840), total_steps=600_000, blocks_per_epoch=976)
    assert dict(length_rows(big, None))["training"] == (
        "600,000 steps, 294,912,000,000 tokens, 2,360,655.74 epochs, 40,718.94 tokens per parameter"
    )


def test_many_data_files_are_summed_and_the_first_named() -> None:
    names = [f"shard_{at}.bin" for at in range(1200)]
    split = stream(*((name, 1_000_000) for name in names))
    files = tuple(CorpusFile(name, 1, 1_000_000) for name in names)
    corpus = replace(CORPUS, train=split, files=files)
    assert layout(data_rows("train data", corpus, split, 128)) == [
        "train data   1,200 files: 1,200,000,000 tokens, 9,374,999 blocks",
        "             shard_0.bin: 1,000,000 tokens",
        "             shard_1.bin: 1,000,000 tokens",
        "             shard_2.bin: 1,000,000 tokens",
        "             and 1,197 more",
    ]


def test_checkpoint_row_of_run_that_saves_at_the_end_only_or_never() -> None:
    at_the_end = dict(checkpoint_rows(with_checkpoint(save_every=0, keep_epochs=None), SIZE, FREE))
    assert (
        at_the_end["checkpoints"] == "at the end; keeps 10 rolling, 10 emergency, all epoch files"
    )
    [never] = checkpoint_rows(with_checkpoint(enabled=False), SIZE, FREE)
    assert never[1] == "none, so a crash loses this run (checkpoint.enabled=false)"


def test_report_of_largest_model_fits_80_columns() -> None:
    model = ModelConfig(n_layer=48, n_head=25, n_embd=1600, block_size=1024)
    config = replace(CONFIG, model=model, trainer=TrainerConfig(batch_size=64, grad_accum=40))
    done = CompletedWork(steps=18_000_000, blocks=10**10, tokens=10**13)
    run = replace(RUN, config=config, total_steps=19_073_000, done=done)
    rows: list[Row] = [
        *model_rows(model),
        *length_rows(run, 1e6),
        *checkpoint_rows(run, 18_700_000_000, FREE),
    ]
    assert max(map(len, layout(rows))) <= 80


def reporter_of(counters: Counters, steps: int, recent: LossSum, speeds: list[float]) -> Reporter:
    meter = Meter(1024, torch.device("cpu"))
    meter.steps, meter.speeds, meter._begun = steps, speeds, time.perf_counter() - 134.2
    state: Any = SimpleNamespace(counters=counters, group=SingleProcess())
    unused: Any = None
    reporter = Reporter(
        state=state,
        validated=RUN,
        loggers=unused,
        replay=unused,
        events=NO_EVENTS,
        meter=meter,
        bar=unused,
    )
    reporter.logged = recent
    return reporter


DIRECTORY = Path("outputs/gpt2_run_20260102_030405")
COUNTERS = Counters(step=480, train_loss=4.5, val_loss=3.2518, best_val_loss=3.2104, best_step=400)
SAVED = (3, saved_text(files=3, used=173_822_976, largest=57_940_992, free=35_000_000_000))


def summary_of(
    counters: Counters = COUNTERS,
    steps: int = 480,
    saved: tuple[int, str] | None = SAVED,
    speeds: tuple[float, ...] = (3839.6,),
    has_stopped: bool = True,
) -> list[str]:
    recent = LossSum(42.031, 10) if counters.train_loss is not None else LossSum()
    reporter = reporter_of(counters, steps, recent, list(speeds))
    return summary(DIRECTORY, reporter, saved, has_stopped=has_stopped)


def test_summary_of_stopped_run() -> None:
    lines = summary_of()
    assert "\n".join(lines[:5]) == textwrap.dedent("""\
        trained      480 steps, 491,520 tokens in 2m 14s, median 3,840 tok/s
        loss         train 4.2031 (mean of the last 10 steps)
                     val 3.2518 (perplexity 25.8), best val 3.2104 at step 400
        run          outputs/gpt2_run_20260102_030405
        saved        3 files, 173.8 MB on disk, 35.0 GB free: 302 more saves fit""")
    assert lines[5].startswith("resume       ") and lines[5].endswith(
        "gpt2ckpt.train +resume=latest hydra.run.dir=outputs/gpt2_run_20260102_030405"
    )
    assert lines[6].startswith("sample       ") and lines[6].endswith(
        "gpt2ckpt.sample ckpt=outputs/gpt2_run_20260102_030405"
    )


def test_summary_of_resumed_process_counts_all_steps() -> None:
    lines = summary_of(replace(COUNTERS, step=497), steps=17)
    assert lines[0].startswith("trained      17 steps (497 in all), 17,408 tokens in ")


def test_summary_without_losses_and_without_checkpoints() -> None:
    saved = (0, saved_text(files=1, used=173_822_976, largest=0, free=35_000_000_000))
    lines = summary_of(Counters(step=480), saved=saved)
    assert lines[1] == "loss         none"
    assert lines[3:] == ["saved        1 file, 173.8 MB on disk, 35.0 GB free"]


def test_summary_of_finished_run_has_no_resume_command() -> None:
    lines = summary_of(has_stopped=False)
    assert [line.split()[0] for line in lines[4:]] == ["saved", "sample"]


def test_summary_after_rollback_counts_steps_of_the_run() -> None:
    lines = summary_of(replace(COUNTERS, step=30), steps=37)
    assert lines[0].startswith("trained      37 steps (30 of them kept), 37,888 tokens in ")


def test_summary_without_logged_step_has_no_speed() -> None:
    assert summary_of(speeds=())[0].endswith("491,520 tokens in 2m 14s")


def test_summary_without_answer_of_the_file_system() -> None:
    unknown = saved_text(files=2, used=1_000_000, largest=500_000, free=UNKNOWN_FREE)
    assert summary_of(saved=(2, unknown))[4] == (
        "saved        2 files, 1.0 MB on disk, free space not known"
    )
    lines = summary_of(saved=None)
    assert lines[4] == "saved        not known: the file system of the run does not answer"


def test_weights_row_lists_skipped_files() -> None:
    rows = rows_of("weights", ["skipped a.pt: damaged", "b.pt: 5 tensors"])
    assert layout(rows) == [
        "weights      skipped a.pt: damaged",
        "             b.pt: 5 tensors",
    ]


@pytest.mark.parametrize("hangs", [False, True])
def test_training_ends_normally_when_file_system_does_not_answer(
    token_data: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    hangs: bool,
) -> None:
    answers = threading.Event()

    def measure(directory: Path) -> None:
        if hangs:
            answers.wait()
        raise OSError(errno.EIO, "no answer", str(directory))

    monkeypatch.setattr(run_summary, "_saved", measure)
    monkeypatch.setattr(run_summary, "DISK_SECONDS", 0.2)
    with caplog.at_level(logging.INFO):
        outcome = train([*token_data.overrides, "trainer.max_steps=2"], tmp_path / "run")
    answers.set()
    assert outcome.stopped is None
    assert "not known: the file system of the run does not answer" in caplog.text
    assert "gpt2ckpt.sample ckpt=" in caplog.text
