"""Tests of metrics.jsonl after kills, rollbacks and changed settings, and of archived steps."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from run_helpers import frozen_of

from gpt2ckpt.checkpoint.state import RunIdentity
from gpt2ckpt.files import durable
from gpt2ckpt.loggers import metrics_file
from gpt2ckpt.loggers.metrics_file import MetricsFile, read
from gpt2ckpt.runs.history import (
    REPLAY,
    Past,
    Point,
    continue_history,
    identity_in,
    origin_in,
    start_history,
)
from gpt2ckpt.training.replay_check import ReplayCheck

LOGGED = ("logger=wandb", "trainer.log_every=1", "trainer.eval_every=0")
SAME, OTHER = LOGGED, (*LOGGED, "optimizer.lr=1e-5")
RUN = RunIdentity("1a2b3c4d", "gpt2")


def log(run: Path, steps: range, loss: float = 0.0) -> None:
    """Log steps as a process does: the loss of a step is 1 / step plus `loss`."""
    file = MetricsFile(run / "metrics.jsonl")
    for step in steps:
        file.log({"step": step, "train_loss": 1 / step + loss})
    file.close()


def back(run: Path, step: int, settings: tuple[str, ...] = SAME, **more: Any) -> str:
    """Resume after `step`; `archive` is the folder of archived checkpoints."""
    identity = more.pop("identity", RUN)
    source = more.pop("source", run / "checkpoints" / "latest.pt")
    notices = continue_history(
        *(Past.of(run), identity, Point(step, source)),
        **{"saved": frozen_of(SAME), "frozen": frozen_of(settings), "archive": None, **more},
    )
    return "\n".join(notices)


def aside_in(run: Path) -> Path:
    folder = run / "checkpoints" / "abandoned_20251106_120000"
    folder.mkdir(parents=True)
    return folder


def steps(path: Path) -> list[int]:
    return [event["step"] for event in read(path)]


def replay(run: Path) -> ReplayCheck:
    return ReplayCheck.of_run(run / REPLAY, run / "metrics.jsonl")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was killed after 30 steps."""
    start_history(tmp_path, RUN, frozen_of(SAME))
    log(tmp_path, range(1, 31))
    return tmp_path


def test_lost_steps_move_to_the_replay_file_after_a_crash(run: Path) -> None:
    assert back(run, 20) == ""
    assert steps(run / "metrics.jsonl") == list(range(1, 21))
    assert steps(run / REPLAY) == list(range(21, 31))
    assert not (run / "checkpoints").exists()
    check = replay(run)
    said = []
    for step in range(21, 31):
        assert steps(run / REPLAY) == list(range(21, 31)), step  # a kill here loses no comparison
        said.append(check.compare(step, 1 / step))
    assert said[:-1] == [None] * 9 and str(said[-1]) == "replay: 10 steps identical"
    assert (run / REPLAY).exists()  # until the result is recorded
    check.close()
    assert not (run / REPLAY).exists()
    assert identity_in(run, RUN) == RUN


def test_replay_is_compared_to_its_end_after_several_kills(run: Path) -> None:
    back(run, 20)
    log(run, range(21, 26))
    back(run, 20)  # before a save
    log(run, range(21, 28))
    back(run, 24)  # after one
    log(run, range(25, 27))
    back(run, 26)
    check = replay(run)
    assert check.interrupted(27) == (
        "replay: 6 of 10 steps identical, the rest is compared after a resume"
    )
    said = [check.compare(step, 1 / step) for step in range(27, 31)]
    assert said[:-1] == [None] * 3 and str(said[-1]) == "replay: 10 steps identical"
    assert check.interrupted(30) is None


def test_difference_before_the_last_kill_is_reported(run: Path) -> None:
    back(run, 20)
    log(run, range(21, 23))
    log(run, range(23, 26), loss=1e-9)
    back(run, 25)
    check = replay(run)
    verdicts = [check.compare(step, 1 / step) for step in range(26, 31)]
    assert str(verdicts[-1]).startswith("replay: step 23 differs: loss ")


def test_rollback_archives_lines_with_the_checkpoints_and_compares_them(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    aside = aside_in(run)
    assert back(run, 10, archive=aside) == ""
    assert (run / "metrics.jsonl").read_bytes() == b"".join(lines[:10])
    assert (aside / "metrics.jsonl").read_bytes() == b"".join(lines[10:])
    assert steps(run / REPLAY) == list(range(11, 31))


def test_other_settings_after_a_crash_start_a_branch(run: Path) -> None:
    """The lost steps are abandoned, not trained again; W&B has them, so it gets a linked run."""
    said = back(run, 20, OTHER)
    assert "W&B cannot rewrite the steps after 20 that its run 1a2b3c4d has" in said
    [kept] = (run / "checkpoints").glob("abandoned_*/metrics.jsonl")
    assert steps(kept) == list(range(21, 31))
    assert not (run / REPLAY).exists()
    identity = identity_in(run, RUN)
    assert identity.wandb_id is not None and identity.wandb_id in said
    assert (identity.id, origin_in(run)) == (RUN.id, (RUN.id, 20))
    log(run, range(21, 25))  # killed before its first save: the same command finds it again
    assert back(run, 20, OTHER) == ""
    assert identity_in(run, RUN) == identity
    assert steps(run / REPLAY) == list(range(21, 25))
    log(run, range(21, 30))
    assert back(run, 25, OTHER, identity=identity, saved=frozen_of(OTHER)) == ""
    assert identity_in(run, identity) == identity


def test_rollback_past_a_change_of_settings_compares_up_to_the_change(run: Path) -> None:
    """Steps 11 to 30 are trained again with the same settings; later ones had another rate."""
    assert back(run, 30, OTHER) == ""
    log(run, range(31, 41), loss=0.5)
    said = back(run, 10, archive=aside_in(run))
    assert "continues in the linked W&B run" in said
    assert steps(run / REPLAY) == list(range(11, 31))


def test_resume_from_an_archived_checkpoint_restores_its_history(run: Path) -> None:
    aside = aside_in(run)
    said = back(run, 10, OTHER, archive=aside)
    linked = identity_in(run, RUN)
    assert said and linked.wandb_id
    log(run, range(11, 16), loss=0.5)
    source = aside / "rolling_step_000020.pt"
    assert Point(20, source).shared_step == 10
    assert back(run, 20, source=source) == ""
    assert [(e["step"], e["train_loss"]) for e in read(run / "metrics.jsonl")] == [
        (step, 1 / step) for step in range(1, 21)
    ]
    assert identity_in(run, RUN) == RUN
    assert steps(run / REPLAY) == list(range(21, 31))
    [left] = [path for path in (run / "checkpoints").iterdir() if path != aside]
    assert steps(left / "metrics.jsonl") == list(range(11, 16))


def test_restarted_run_keeps_its_id(run: Path) -> None:
    """The new process has another identity until it reads the recorded one."""
    fresh = RunIdentity("ffffffff", "gpt2")
    past = Past.of(run)
    assert (
        continue_history(past, fresh, Point(), saved={}, frozen=frozen_of(SAME), archive=None) == []
    )
    assert identity_in(run, fresh) == RUN
    assert steps(run / REPLAY) == list(range(1, 31))


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b"[]"])
def test_run_without_a_lineage_file_resumes(run: Path, content: bytes | None) -> None:
    (run / ".history.json").unlink()
    if content is not None:
        (run / ".history.json").write_bytes(content)
    assert identity_in(run, RUN) == RUN
    assert "linked" in back(run, 20, OTHER)
    assert steps(run / "metrics.jsonl") == list(range(1, 21))


def go_on_killed_at(run: Path, settings: tuple[str, ...], write: int) -> bool:
    """Resume in a process that is killed at one write; return whether it survived."""
    values = frozen_of(SAME), frozen_of(settings)
    child = os.fork()
    if child == 0:
        left = [write]

        def counted(real: Any) -> Any:
            def call(*arguments: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments)

            return call

        for module, name in ((durable, "publish"), (durable, "delete"), (metrics_file, "rewind")):
            setattr(module, name, counted(getattr(module, name)))
        try:
            back(run, 20, settings, saved=values[0], frozen=values[1])
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("settings", [SAME, OTHER])
def test_kill_between_any_two_writes_loses_no_line(run: Path, settings: tuple[str, ...]) -> None:
    write, done = 0, False
    while not done:
        write += 1
        done = go_on_killed_at(run, settings, write)
        kept = {*steps(run / "metrics.jsonl")}
        for path in [run / REPLAY, *run.glob("checkpoints/abandoned_*/metrics.jsonl")]:
            kept |= {*steps(path)} if path.exists() else set()
        assert kept == set(range(1, 31)), write
    assert write >= 4
    assert steps(run / "metrics.jsonl") == list(range(1, 21))
    assert (identity_in(run, RUN).wandb_id is None) == (settings == SAME)


def spoil(path: Path, line: int, by: bytes) -> bytes:
    """Replace a line, counted from 1; return the old one."""
    lines = path.read_bytes().splitlines(keepends=True)
    was, lines[line - 1] = lines[line - 1], by
    path.write_bytes(b"".join(lines))
    return was


def test_damaged_lines_are_reported_and_quarantined(run: Path) -> None:
    null = b'{"step": 12, "train_loss": null}\n'
    spoil(run / "metrics.jsonl", 12, null)
    spoil(run / "metrics.jsonl", 25, b'{"step": 25, "tra\n')
    said = back(run, 20)
    [folder] = (run / "checkpoints").glob("corrupt_*")
    assert said.splitlines() == [
        f"{run}/metrics.jsonl lacks the train_loss of 1 step: 12",
        f"{run}/metrics.jsonl: 2 damaged lines removed (line 12: train_loss is null; line "
        f"25: not JSON); kept in {folder}/metrics.jsonl",
    ]
    assert (folder / "metrics.jsonl").read_bytes() == null + b'{"step": 25, "tra\n'
    assert steps(run / "metrics.jsonl") == [*range(1, 12), *range(13, 21)]
    assert steps(run / REPLAY) == [*range(21, 25), *range(26, 31)]
    check = replay(run)
    said_then = [check.compare(step, 1 / step) for step in range(21, 31)]
    assert str(said_then[-1]) == "replay: 9 steps identical"


def test_damaged_replay_and_lineage_files_are_quarantined(run: Path) -> None:
    back(run, 20)
    was = spoil(run / REPLAY, 3, b"\xff\x00\n")
    (run / ".history.json").write_bytes(b'{"run_id": 1e999')
    said = back(run, 20)
    [folder] = (run / "checkpoints").glob("corrupt_*")
    assert f"{run}/.replay.jsonl: 1 damaged line removed (line 3: not JSON)" in said
    assert f"{run}/.history.json: damaged" in said
    assert (folder / ".replay.jsonl").read_bytes() == b"\xff\x00\n" and was
    assert (folder / ".history.json").read_bytes() == b'{"run_id": 1e999'
    assert identity_in(run, RUN) == RUN


def test_unsorted_lines_are_sorted(run: Path) -> None:
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(reversed(whole.splitlines())) + b"\r\n")
    assert back(run, 30) == (f"{path}: its lines were not in the order of their steps: sorted")
    assert path.read_bytes().replace(b"\r", b"") == whole
    assert back(run, 30) == ""


def test_intact_history_is_not_reported(run: Path) -> None:
    before = (run / "metrics.jsonl").read_bytes()
    assert back(run, 30) == ""
    assert (run / "metrics.jsonl").read_bytes() == before
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize("line", [1, 7, 20])
def test_missing_line_is_reported(run: Path, line: int) -> None:
    spoil(run / "metrics.jsonl", line, b"")
    assert back(run, 20) == f"{run}/metrics.jsonl lacks the train_loss of 1 step: {line}"


def test_run_that_recorded_no_logging_intervals_misses_no_line(run: Path) -> None:
    """Runs of earlier versions have no record; any resume may have changed log_every."""
    record = json.loads((run / ".history.json").read_text())
    del record["logged"]
    (run / ".history.json").write_text(json.dumps(record))
    spoil(run / "metrics.jsonl", 7, b"")
    assert back(run, 20) == ""
