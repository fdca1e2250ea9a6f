"""events.jsonl of real commands: each event of docs/events.md, with the fields listed there."""

import errno
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import preload
import pytest
from commands import environment, finish, run, start, steps_done, succeed, wait_until
from real_disks import mounted

from gpt2ckpt.runs.events import read_events

PAGE = Path(__file__).parents[2] / "docs" / "events.md"
LONG = ("trainer.max_steps=100000", "hydra.run.dir=run")


def documented() -> dict[str, set[str]]:
    """The fields of each event by the table in docs/events.md."""
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| ", PAGE.read_text(), re.MULTILINE)
    explained = re.compile(r"\([^()]*\)")
    return {name: set(re.findall(r"`(\w+)`", explained.sub("", cell))) for name, cell in rows}


def recorded(run_directory: Path) -> list[dict[str, Any]]:
    """The events of a run, each with the fields that the page lists."""
    events = read_events(run_directory)
    for event in events:
        assert event.keys() - {"time", "event", "step"} == documented()[event["event"]], event
    times = [event["time"] for event in events]
    assert times == sorted(times)
    return events


def names(run_directory: Path) -> list[str]:
    return [event["event"] for event in recorded(run_directory)]


def only(run_directory: Path, name: str) -> dict[str, Any]:
    """The only event of a name."""
    [event] = [event for event in recorded(run_directory) if event["event"] == name]
    return event


def saved(run_directory: Path) -> list[str]:
    events = recorded(run_directory)
    return [event["file"] for event in events if event["event"] == "checkpoint_saved"]


def test_signals_saves_and_a_resume_are_recorded(token_data: Any, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    words = [*token_data.overrides, "trainer.eval_every=20", "checkpoint.save_every=20"]
    process = start("train", [*words, *LONG], tmp_path)
    wait_until(process, lambda: len(saved(directory)) >= 1)
    process.send_signal(signal.SIGUSR1)
    wait_until(process, lambda: any("emergency" in name for name in saved(directory)))
    process.send_signal(signal.SIGTERM)
    assert finish(process).code == 143
    events = recorded(directory)
    assert events[0]["event"] == "run_started" and events[0]["overrides"][0] == "data=tokens"
    files = [event for event in events if event["event"] == "checkpoint_saved"]
    assert {"latest", "rolling"} <= set(files[0]["roles"]) and files[0]["step"] == 20
    assert files[0]["file"] == "rolling_step_000020.pt" and files[0]["bytes"] > 100_000
    assert [event["signal"] for event in events if event["event"] == "signal_received"] == [
        "SIGUSR1",
        "SIGTERM",
    ]
    assert [event["event"] for event in events[-3:]] == [
        "signal_received",
        "checkpoint_saved",
        "run_stopped",
    ]
    assert (events[-1]["signal"], events[-1]["error"]) == ("SIGTERM", None)
    assert events[-1]["step"] == events[-2]["step"] >= 20 and events[-2]["reason"] == "SIGTERM"
    before = (directory / "events.jsonl").read_bytes()

    older = "+resume=run/checkpoints/rolling_step_000020.pt"
    succeed(run("train", [older, "trainer.max_steps=24"], tmp_path))
    assert (directory / "events.jsonl").read_bytes().startswith(before), "history was rewritten"
    later = recorded(directory)[len(events) :]
    assert [event["event"] for event in later] == [
        *("rolled_back", "run_resumed", "evaluated", "checkpoint_saved", "run_finished")
    ]
    back, resumed, *_, finished = later
    assert (back["step"], back["from_step"], back["reason"]) == (20, events[-1]["step"], "resume")
    assert resumed["changes"] == {"trainer.max_steps": [100000, 24]}
    assert resumed["file"] == "run/checkpoints/rolling_step_000020.pt" and resumed["step"] == 20
    assert (finished["step"], finished["best_val_loss"] is not None) == (24, True)


def test_repair_and_replay_after_a_kill_are_recorded(token_data: Any, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    words = [*token_data.overrides, "checkpoint.save_every=20", "checkpoint.save_epochs=false"]
    process = start("train", [*words, "schedule=constant", *LONG], tmp_path)
    wait_until(process, lambda: len(saved(directory)) >= 2 and steps_done(directory) % 20 > 5)
    process.kill()
    finish(process)
    before, lost = recorded(directory), steps_done(directory)
    assert "run_stopped" not in names(directory)
    with (directory / "events.jsonl").open("ab") as file:
        file.write(b'{"time": "2025-')
    latest = directory / "checkpoints" / "latest.pt"
    with latest.open("r+b") as file:
        file.seek(latest.stat().st_size // 2)
        file.write(b"damaged!")
    resume = ["+resume=latest", "hydra.run.dir=run", f"trainer.max_steps={lost + 3}"]
    done = succeed(run("train", resume, tmp_path))
    assert "replay: " in done.out
    assert recorded(directory)[: len(before)] == before
    assert "latest.pt" in only(directory, "checkpoint_corrupt")["files"]
    repaired = only(directory, "checkpoint_repaired")
    assert "latest.pt" in repaired["files"] and repaired["source"] == "rolling_last_backup.pt"
    resumed = only(directory, "run_resumed")
    assert [Path(item["path"]).name for item in resumed["skipped"]][-1].endswith(".pt")
    replay = only(directory, "replay_verified")
    assert replay["first_difference"] is None and replay["step"] == lost
    assert replay["identical_steps"] == lost - resumed["step"] > 0


def test_skipped_batches_spike_and_rollback_are_recorded(token_data: Any, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    words = [*token_data.overrides, "checkpoint.save_every=5", "trainer.max_steps=30"]
    words += ["checkpoint.save_epochs=false", "trainer.on_bad_loss=rollback"]
    words += ["trainer.spike_zscore=20", "trainer.spike_window=8", "hydra.run.dir=run"]
    program = str(Path(__file__).with_name("anomalies.py"))
    command = [sys.executable, program, *words]
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True, capture_output=True)
    skips = [event for event in recorded(directory) if event["event"] == "batch_skipped"]
    where = [(skip["step"], skip["blocks"]) for skip in skips]
    assert where == [(3, [6, 7]), (14, [30, 31]), (23, [50, 51]), (23, [52, 53])]
    assert skips[0]["reason"].startswith("the loss is nan")
    spike = only(directory, "loss_spike")
    assert spike["step"] == 14 and spike["loss"] > 100 and "deviations" in spike["reason"]
    back = only(directory, "rolled_back")
    assert (back["step"], back["from_step"], back["file"]) == (20, 23, "rolling_step_000020.pt")
    assert back["reason"] != "resume"
    assert names(directory)[-1] == "run_finished"


def test_exception_is_recorded_as_the_end(token_data: Any, tmp_path: Path) -> None:
    words = [*token_data.overrides, "trainer.max_steps=30", "hydra.run.dir=run"]
    program = str(Path(__file__).with_name("anomalies.py"))
    command = [sys.executable, program, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True)
    assert done.returncode == 1
    end = recorded(tmp_path / "run")[-1]
    assert (end["event"], end["step"], end["signal"]) == ("run_stopped", 3, None)
    assert end["error"].startswith("NonFiniteLoss: the loss is nan")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(["-t", "tmpfs", "-o", "size=16m", "tmpfs"], tmp_path / "disk")


def test_full_disk_is_recorded(token_data: Any, disk: Path) -> None:
    words = [*token_data.overrides, "trainer.max_steps=40", "checkpoint.save_every=1"]
    words += ["checkpoint.keep_rolling=40", "checkpoint.save_epochs=false", "hydra.run.dir=run"]
    run("train", words, disk)
    low = only(disk / "run", "disk_low")
    assert low["step"] in (10, 20, 30) and 0 < low["saves_left"] < 10
    failed = [event for event in recorded(disk / "run") if event["event"] == "checkpoint_failed"]
    assert failed and failed[0]["error"].startswith("it needs ") and failed[0]["step"] > 10
    assert names(disk / "run")[-1] in ("run_finished", "run_stopped")


def test_events_wait_until_the_disk_accepts_them(token_data: Any, tmp_path: Path) -> None:
    directory, faults = tmp_path / "run", preload.build(tmp_path)
    faults.set(("write", errno.ENOSPC, "events.jsonl"))
    words = [*token_data.overrides, "checkpoint.save_every=5", *LONG]
    process = start("train", words, tmp_path, faults.environment)
    wait_until(process, lambda: steps_done(directory) > 22)
    assert recorded(directory) == []
    faults.set()
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.code == 143
    assert done.out.count("events.jsonl cannot be written for now, training continues") == 1
    assert names(directory)[0] == "run_started" and names(directory)[-1] == "run_stopped"
    assert saved(directory)[:3] == [f"rolling_step_{step:06}.pt" for step in (5, 10, 15)]
