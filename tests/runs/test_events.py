"""events.jsonl: writing, reading damaged files, and the list in docs/events.md."""

import json
import os
import re
import stat
from pathlib import Path
from typing import get_args

import pytest

from gpt2ckpt.checkpoint.event_sink import EventName
from gpt2ckpt.errors import InputError
from gpt2ckpt.runs.events import EventLog, read_events
from gpt2ckpt.runs.layout import EVENTS

PAGE = Path(__file__).parents[2] / "docs" / "events.md"


def names(directory: Path) -> list[str]:
    return [event["event"] for event in read_events(directory)]


def test_event_is_readable_when_write_returns(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.write("evaluated", 5, val_loss=float("nan"), text="line\nbreak ü")
    [event] = read_events(str(tmp_path))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", event.pop("time"))
    assert event == {"event": "evaluated", "step": 5, "val_loss": "NaN", "text": "line\nbreak ü"}
    log.sync()
    log.close()


def test_torn_line_is_skipped_and_terminated(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.write("run_started", 0)
    path = tmp_path / EVENTS
    before = path.read_bytes()
    path.write_bytes(before + b'{"time": "2025-11-06T14:3')
    assert names(tmp_path) == ["run_started"]
    with EventLog(tmp_path) as log:
        log.write("run_resumed", 3)
    assert names(tmp_path) == ["run_started", "run_resumed"]
    assert path.read_bytes().startswith(before + b'{"time": "2025-11-06T14:3\n{"time": "')


def test_lines_that_are_not_events_are_skipped(tmp_path: Path) -> None:
    whole = json.dumps({"time": "2025-11-06T14:30:22+00:00", "event": "run_started", "step": 0})
    lines = [b"null", b"7", b"[]", b'{"event": "evaluated"}', b"\xff\x00", b"[" * 99_999]
    (tmp_path / EVENTS).write_bytes(b"\n".join([*lines, whole.encode(), *lines]))
    assert names(tmp_path) == ["run_started"]


def test_run_without_the_file_has_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []


def test_sync_makes_the_name_of_a_new_file_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bool] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    log = EventLog(tmp_path)
    log.write("run_started", 0)
    log.sync()
    log.sync()
    assert synced == [False, True, False]
    log.close()


def test_snapshot_by_hard_links_keeps_its_bytes(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.write("run_started", 0)
        os.link(tmp_path / EVENTS, tmp_path / "snapshot")
        before = (tmp_path / "snapshot").read_bytes()
        log.write("evaluated", 1)
    assert (tmp_path / "snapshot").read_bytes() == before
    assert names(tmp_path) == ["run_started", "evaluated"]


def test_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / EVENTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"events\.jsonl cannot be opened"):
        EventLog(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_closed_or_deleted_file_raises_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventLog(tmp_path)
    (tmp_path / EVENTS).unlink()
    log.sync()
    log.close()
    log.write("run_finished", 9)
    log.sync()
    assert caplog.text.count("events.jsonl cannot be written for now, training continues") == 1


def test_docs_list_every_event() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ", PAGE.read_text(), re.MULTILINE)
    assert rows == list(get_args(EventName))
