"""The table of a sweep: best job first, unfinished jobs last, 80 columns."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gpt2ckpt.sweeps import journal
from gpt2ckpt.sweeps.journal import JournalEntry, Status
from gpt2ckpt.sweeps.launch import _Launch
from gpt2ckpt.sweeps.table import Row, best, ranked, table

ROWS = [
    Row("0", "optimizer.lr=1e-1", Status.FAILED, None, "the loss is nan"),
    Row("1", "optimizer.lr=1e-2", Status.FINISHED, 7.6325),
    Row("2", "optimizer.lr=1e-3", Status.INTERRUPTED, 6.5),
    Row("3", "optimizer.lr=1e-4", Status.WAS_FINISHED, 7.5),
    Row("4", "optimizer.lr=1e-5", Status.FINISHED, None),
    Row("5", "optimizer.lr=1e-6", Status.FINISHED, math.nan),
    Row("-", "optimizer.lr=1e-7", Status.NOT_STARTED),
]


def test_table_sorts_by_loss_and_marks_the_best() -> None:
    rows = ranked(ROWS)
    assert table(rows, best(rows)) == [
        "job  overrides          status           best val loss",
        "3    optimizer.lr=1e-4  finished before         7.5000  best",
        "1    optimizer.lr=1e-2  finished                7.6325",
        "4    optimizer.lr=1e-5  finished                     -",
        "5    optimizer.lr=1e-6  finished                   nan",
        "2    optimizer.lr=1e-3  interrupted             6.5000",
        "0    optimizer.lr=1e-1  failed                       -",
        "-    optimizer.lr=1e-7  not started                  -",
        "0: the loss is nan",
    ]


def test_table_without_a_loss_marks_no_best() -> None:
    assert best([row for row in ROWS if row.job in "0245-"]) is None
    assert best([]) is None


def test_table_wraps_long_cells_at_80_columns() -> None:
    label = " ".join(f"model.n_layer={n} optimizer.weight_decay=0.12345" for n in range(4))
    rows = [
        Row("lr=0.001,wd=0.1,seed=1234567", label, Status.LOCKED, 4.5, "no " * 60),
        Row("1", f"data.train={'/very/long' * 12}", Status.FINISHED, 4.25),
    ]
    lines = table(ranked(rows), best(rows))
    assert max(map(len, lines)) == 80
    labels = [line[22:].split("  ")[0].strip() for line in lines]
    assert "/very/long" * 12 in "".join(labels), "nothing of an override is lost"
    assert sum(line.endswith("4.2500  best") for line in lines) == 1


def test_warning_of_several_jobs_is_printed_once() -> None:
    rows = [Row(str(n), f"seed={n}", "new", warnings=("odd",) * (n != 1)) for n in range(3)]
    assert table(rows)[-1] == "0, 2: warning: odd"


def test_journal_reads_all_launches_or_one(tmp_path: Path) -> None:
    for launch, number in (("first", 0), ("second", 0)):
        journal.append(tmp_path, JournalEntry(launch, number, Status.FINISHED, job=launch))
    assert [entry.job for entry in journal.read(tmp_path)] == ["first", "second"]
    assert [entry.job for entry in journal.read(tmp_path, "second")] == ["second"]


def test_resumed_search_shows_trials_of_earlier_launches(tmp_path: Path) -> None:
    """Optuna counts the trials of each launch from 0; the best may be one of the first launch."""
    entries = [
        JournalEntry("first", 0, Status.FINISHED, job="0", label="lr=1", best_val_loss=2.0),
        JournalEntry("first", 1, Status.STARTED, job="1", label="lr=2"),
        JournalEntry("first", 2, Status.STARTED, job="2", label="lr=3"),
        JournalEntry("second", 0, Status.FINISHED, job="1", label="lr=2", best_val_loss=3.0),
    ]
    for entry in entries:
        journal.append(tmp_path, entry)
    search: Any = SimpleNamespace(jobs=[])
    rows = ranked(_Launch(search, tmp_path, "second")._rows())
    assert [(row.job, row.status) for row in rows] == [
        ("0", Status.FINISHED),
        ("1", Status.FINISHED),
        ("2", Status.FAILED),
    ]
    assert rows[2].reason == "its process was killed"
    assert best(rows) == rows[0]
