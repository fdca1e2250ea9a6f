"""Reading a jobs.jsonl that was edited or damaged."""

import json
from pathlib import Path
from typing import Any

import pytest

from gpt2ckpt.runs.layout import JOBS
from gpt2ckpt.sweeps.journal import JournalEntry, Status, append, last_of_each, read

ENTRIES = [
    JournalEntry("one", 0, Status.STARTED, "0", "optimizer.lr=1e-3"),
    JournalEntry("one", 0, Status.FINISHED, "0", "optimizer.lr=1e-3", 2.5),
    JournalEntry("two", 1, Status.FINISHED, "1", "optimizer.lr=1e-4", 1.5),
]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for entry in ENTRIES:
        append(tmp_path, entry)
    return tmp_path


def test_entries_of_one_launch_are_read(sweep: Path) -> None:
    assert read(sweep, "one") == ENTRIES[:2]
    assert last_of_each(read(sweep, "one")) == {0: ENTRIES[1]}
    assert read(sweep / "nowhere", "one") == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("number", "zero"), ("number", None), ("number", [0]), ("pid", {})),
        *(("best_val_loss", "low"), ("best_val_loss", [2.5]), ("best_val_loss", 10**400)),
        *(("status", "unheard of"), ("status", None), ("launch", 5)),
    ],
)
def test_entry_with_a_wrong_value_is_skipped(sweep: Path, key: str, value: Any) -> None:
    lines = (sweep / JOBS).read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), key: value})
    (sweep / JOBS).write_text("\n".join([*lines, ""]))
    assert read(sweep, "one") == ENTRIES[:1]


@pytest.mark.parametrize("line", [b"[]", b"null", b"{}", b"\xff\xfe\x00", b"[" * 100_000, b'{"la'])
def test_line_that_is_not_an_entry_is_skipped(sweep: Path, line: bytes) -> None:
    with (sweep / JOBS).open("ab") as file:
        file.write(line + b"\n")
    append(sweep, ENTRIES[0])
    assert read(sweep, "one") == [*ENTRIES[:2], ENTRIES[0]]
