"""`log`: the tree of runs with resumes, rollbacks and forks."""

import json
from datetime import UTC, datetime
from pathlib import Path

from tools_helpers import command, save

from gpt2ckpt.checkpoint.store import Store


def fork(run: Path, own: str, parent: str, step: int, file: str = "x") -> None:
    family = {"id": own, "name": "gpt2", "parent": {"id": parent, "step": step, "file": file}}
    save(run, step + 1, {"run": family})


def test_log_shows_resumes_rollbacks_and_forks(checkpoints, run) -> None:
    folder = run / "checkpoints"
    moment = datetime(2025, 11, 7, 10, 0, 0)
    Store(folder).roll_back_to(folder / "rolling_step_000010.pt", 10, moment)
    (run / "train.log").write_text(
        "[2025-11-06 13:00:00,123] resuming from outputs/a, step 9/latest.pt, step 20\n"
        "[2025-11-06 13:00:01,000] sample: resuming from x, step 3\n"
        "[2025-11-07 09:59:59,999] resuming from x, step 10\n"
        "torn [2025-11-07 11:00:00,000] resuming from x, step 11\n"
    )
    fork(run.parent / "b", "bbbbbbbb", "1a2b3c4d", 10)
    fork(run.parent / "c", "cccccccc", "bbbbbbbb", 11)
    fork(run.parent / "d", "dddddddd", "1a2b3c4d", 10)
    assert checkpoints("log", run.parent).out.splitlines() == [
        f"{run} (1a2b3c4d): step 10, best val 4.4000",
        "├─ 2025-11-06 13:00:00 resumed from step 20",
        "├─ 2025-11-07 09:59:59 resumed from step 10",
        "├─ 2025-11-07 10:00:00 steps 20 to 30 archived in abandoned_20251107_100000",
        f"├─ {run.parent}/b (bbbbbbbb): step 11, best val 4.3900",
        "│  ├─ forked from run 1a2b3c4d at step 10",
        f"│  └─ {run.parent}/c (cccccccc): step 12, best val 4.3800",
        "│     └─ forked from run bbbbbbbb at step 11",
        f"└─ {run.parent}/d (dddddddd): step 11, best val 4.3900",
        "   └─ forked from run 1a2b3c4d at step 10",
        "",
    ]


def test_log_reads_events_and_from_train_log_only_older_resumes(checkpoints, run) -> None:
    (run / "train.log").write_text(
        "[2025-11-06 13:00:00,123] resuming from x, step 5\n"
        "[2025-11-07 14:00:00,000] resuming from x, step 6\n"
    )
    times = [datetime(2025, 11, 7, 10 + hour).astimezone(UTC) for hour in range(5)]
    events = [
        {"event": "run_resumed", "step": 10},
        {"event": "checkpoint_saved", "step": 20},
        {"event": "rolled_back", "step": 20, "from_step": 23, "reason": "the loss is nan"},
        {"event": "run_resumed", "step": "\x1b[2J"},
        {"event": "run_stopped", "step": 24},
    ]
    lines = [json.dumps({"time": t.isoformat(), **e}) for t, e in zip(times, events, strict=True)]
    (run / "events.jsonl").write_text("\n".join(lines) + '\n{"time": "torn')
    assert checkpoints("log", run).out.splitlines()[1:] == [
        "├─ 2025-11-06 13:00:00 resumed from step 5",
        "├─ 2025-11-07 10:00:00 resumed from step 10",
        "├─ 2025-11-07 12:00:00 rolled back from step 23 to 20: the loss is nan",
        "└─ 2025-11-07 13:00:00 resumed from step '\\x1b[2J'",
        "",
    ]


def test_log_shows_a_fork_without_its_parent(checkpoints, tmp_path) -> None:
    fork(tmp_path / "b", "bbbbbbbb", "gone1234", 5)
    assert "└─ forked from run gone1234 at step 5\n" in checkpoints("log", tmp_path).out


def test_log_attaches_a_fork_to_the_recorded_run_not_to_a_copy(checkpoints, tmp_path) -> None:
    for name in ("copy", "origin"):
        save(tmp_path / name, 3)
    fork(tmp_path / "child", "bbbbbbbb", "1a2b3c4d", 3, "outputs/origin/checkpoints/latest.pt")
    lines = checkpoints("log", tmp_path).out.splitlines()
    assert lines[0].startswith(f"{tmp_path}/copy ")
    assert lines[2].startswith(f"{tmp_path}/origin ")
    assert lines[3].startswith(f"└─ {tmp_path}/child ")


def test_log_survives_runs_that_are_each_others_parents(checkpoints, tmp_path) -> None:
    fork(tmp_path / "a", "aaaaaaaa", "bbbbbbbb", 1)
    fork(tmp_path / "b", "bbbbbbbb", "aaaaaaaa", 1)
    fork(tmp_path / "c", "cccccccc", "cccccccc", 1)
    out = checkpoints("log", tmp_path).out
    assert [out.count(f"{tmp_path}/{name} ") for name in "abc"] == [1, 1, 1]


def test_log_shows_a_run_without_a_readable_checkpoint(checkpoints, run) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"")
    assert checkpoints("log", run).out == f"{run}: no readable checkpoint\n\n"


def test_log_of_a_trained_fork(checkpoints, real, trained_once) -> None:
    path = real / "checkpoints" / "rolling_step_000006.pt"
    path.rename(real.parent / "plain.pt")  # a file outside of a run always starts a new one
    where = real.parent / "child"
    arguments = (f"+resume={real.parent}/plain.pt", f"hydra.run.dir={where}", "trainer.max_steps=7")
    done = command("train", *arguments, cwd=trained_once)
    assert done.code == 0, done.err
    lines = checkpoints("log", real.parent).out.splitlines()
    child = next(number for number, line in enumerate(lines) if f"{where} (" in line)
    assert lines[child].startswith("└─ ")
    assert lines[child + 1].startswith("   └─ forked from run ")
    assert lines[child + 1].endswith(" at step 6")
