"""`prune`: frees the reported space, and never deletes the last valid checkpoint."""

import os
import shutil
from datetime import datetime
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tools_helpers import NOON, damage, make_run, save, tree

from gpt2ckpt.checkpoint.newest_valid import find_valid
from gpt2ckpt.checkpoint.reading import check
from gpt2ckpt.checkpoint.state import CheckpointMeta
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.runs.lock import LOCK_NAME, RunLock
from gpt2ckpt.runs.owner import encode, this_process
from gpt2ckpt.tools import prune
from gpt2ckpt.tools.inventory import Inode, ListedCheckpoint, ListGroup
from gpt2ckpt.tools.prune_plan import PruneLimits, freed_bytes, plan_prune
from gpt2ckpt.tools.targets import RunPaths

KEPT_ALWAYS = {
    *("latest.pt", "latest_backup.pt", "rolling_last_backup.pt"),
    *("best_model.pt", "best_model_backup.pt", "best_model_previous.pt"),
}


def names(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


def blocks(*roots: Path) -> int:
    files = [path.stat() for root in roots for path in root.rglob("*") if path.is_file()]
    return sum({info.st_ino: info.st_blocks * 512 for info in files}.values())


def test_prune_without_yes_changes_nothing(checkpoints, run) -> None:
    before = tree(run)
    done = checkpoints("prune", run, "--keep-rolling", "0", "--keep-epochs", "0")
    assert done.code == 0
    assert "  rolling_step_000010.pt\n" in done.out
    assert done.out.splitlines()[-1].startswith("would delete 6 files and free ")
    assert done.out.endswith("Nothing is deleted without --yes\n")
    assert tree(run) == before


def test_prune_without_options_deletes_nothing(checkpoints, run) -> None:
    before = tree(run)
    done = checkpoints("prune", run, "--yes")
    assert (done.code, tree(run)) == (0, before)
    assert "nothing is deleted: pass an option that chooses files" in done.out


def test_prune_limits_each_pool_and_keeps_roles(checkpoints, run) -> None:
    done = checkpoints("prune", run, "--keep-rolling=1", "--keep-epochs=2", "--yes")
    assert done.code == 0
    emergency = next(name for name in names(run) if name.startswith("emergency"))
    assert names(run) == KEPT_ALWAYS | {
        *("rolling_step_000030.pt", "epoch_00001.pt", "epoch_00002.pt", emergency),
    }
    checkpoints("prune", run, "--keep-rolling=0", "--keep-epochs=0", "--keep-emergency=0", "--yes")
    assert names(run) - {LOCK_NAME} == KEPT_ALWAYS
    assert all(check(path) is None for path in (run / "checkpoints").iterdir())


def test_prune_frees_the_reported_space(checkpoints, run, tmp_path) -> None:
    """Deleting a name frees nothing if the file has a further name in any directory."""
    os.link(run / "checkpoints" / "epoch_00001.pt", tmp_path / "my own link.pt")
    arguments = ("prune", run, "--keep-rolling=1", "--keep-epochs=1")
    before = blocks(run / "checkpoints")
    preview = checkpoints(*arguments).out.splitlines()[-1]
    done = checkpoints(*arguments, "--yes").out.splitlines()[-1]
    freed = before - blocks(run / "checkpoints")
    assert 0 < freed < 40_000  # step 10 alone: step 20 is best_model_previous.pt
    assert f"would delete 4 files and free {freed / 1000:.1f} KB" in preview
    assert done == f"deleted 4 files and freed {freed / 1000:.1f} KB"


def test_prune_keeps_the_last_valid_state(checkpoints, run) -> None:
    folder = run / "checkpoints"
    for name in ("latest.pt", "rolling_last_backup.pt", "best_model_backup.pt"):
        damage(folder / name)
    damage(folder / "rolling_step_000020.pt")
    damage(folder / "latest_backup.pt")
    done = checkpoints("prune", run, "--keep-rolling=0", "--keep-epochs=0", "--yes")
    assert done.code == 0
    assert ": it is the last valid checkpoint" in done.out
    left = [path for path in folder.iterdir() if path.name[:5] in ("rolli", "epoch")]
    assert [path.name for path in left if path.name != "rolling_last_backup.pt"] in (
        ["rolling_step_000010.pt"],
        ["epoch_00000.pt"],
    )
    assert find_valid(folder, "latest").state.step == 10


def test_prune_keeps_the_last_valid_state_in_an_archive(checkpoints, run) -> None:
    folder = run / "checkpoints"
    Store(folder).roll_back_to(folder / "rolling_step_000010.pt", 10, NOON)
    damage(folder / "latest.pt")  # is rolling_step_000010.pt and epoch_00000.pt
    done = checkpoints("prune", run, "--abandoned", "--yes")
    assert ": it is the last valid checkpoint" in done.out
    left = list(folder.glob("abandoned_*/*"))
    assert len(left) == 1
    check(left[0])


def test_prune_deletes_nothing_without_a_valid_state(checkpoints, run) -> None:
    for path in {path.stat().st_ino: path for path in (run / "checkpoints").iterdir()}.values():
        damage(path)
    before = tree(run)
    done = checkpoints("prune", run, "--keep-rolling=0", "--yes")
    assert "nothing is deleted: the run has no valid checkpoint" in done.out
    assert {name: data for name, data in tree(run).items() if name != LOCK_NAME} == before


def test_prune_deletes_empty_archive_and_quarantine_folders(checkpoints, run) -> None:
    folder = run / "checkpoints"
    Store(folder).roll_back_to(folder / "rolling_step_000020.pt", 20, NOON)
    damage(next(folder.glob("abandoned_*")) / "rolling_step_000030.pt")
    assert checkpoints("repair", run).code == 0
    (next(folder.glob("abandoned_*")) / "note").write_text("why")
    for name in ("metrics.jsonl", ".history.json"):
        (next(folder.glob("corrupt_*")) / name).write_text("{")
    assert "11" not in checkpoints("prune", run, "--keep-emergency=0", "--yes").out
    assert list(folder.glob("corrupt_*"))
    checkpoints("prune", run, "--corrupt", "--yes")
    assert not list(folder.glob("corrupt_*"))
    assert len(list(folder.glob("abandoned_*/*.pt"))) > 1
    checkpoints("prune", run, "--abandoned", "--yes")
    assert [path.name for path in folder.glob("abandoned_*/*")] == ["note"]
    assert checkpoints("verify", run).code == 0


def test_prune_keeps_the_newest_of_each_pool_of_a_live_run(checkpoints, run) -> None:
    """A save may be about to link other names to the newest file."""
    with RunLock(run):
        arguments = ("--keep-rolling=0", "--keep-epochs=0", "--keep-emergency=0")
        assert checkpoints("prune", run, *arguments, "--yes").code == 0
    pools = names(run) - KEPT_ALWAYS
    emergency = next(name for name in pools if name.startswith("emergency"))
    assert pools == {"rolling_step_000030.pt", "epoch_00002.pt", emergency}


def make_root(root: Path) -> list[Path]:
    """Three runs; the run with the oldest name saved last."""
    runs = [make_run(root / f"gpt2_run_2025110{day}_120000") for day in (1, 2, 3)]
    save(runs[0], 40, {"saved_at": "2025-12-01T00:00:00.000+00:00"})
    for run in runs:
        (run / ".hydra" / "resume_1").mkdir(parents=True)
        (run / "tensorboard").mkdir()
        for name in (
            *("metrics.jsonl", "events.jsonl", "train.log", ".hydra/config.yaml"),
            *(".hydra/resume_1/overrides.yaml", "tensorboard/events.out.tfevents.1.host.2.0"),
        ):
            (run / name).write_text("x")
        (run / LOCK_NAME).write_bytes(encode(this_process(), beat=0))  # and no kernel's lock: dead
    return runs


def test_keep_runs_deletes_the_runs_that_saved_first(checkpoints, tmp_path) -> None:
    first, second, third = make_root(tmp_path)
    save(third, 50, {"saved_at": "2025-11-30T00:00:00.000+00:00"})
    preview = checkpoints("prune", tmp_path, "--keep-runs", "2").out
    assert f"{second}: the complete run, " in preview
    assert second.exists()
    used = blocks(tmp_path)
    done = checkpoints("prune", tmp_path, "--keep-runs", "2", "--yes")
    assert done.code == 0
    assert sorted(tmp_path.iterdir()) == [first, third]
    assert f"freed {(used - blocks(tmp_path)) / 1000:.1f} KB" in done.out


def test_keep_runs_never_deletes_a_live_run(checkpoints, tmp_path) -> None:
    first, second, third = make_root(tmp_path)
    with RunLock(second):
        before = tree(second)
        checkpoints("prune", tmp_path, "--keep-runs", "1", "--yes")
        assert tree(second) == before
    assert first.exists()
    assert not third.exists()


def test_keep_runs_keeps_a_run_resumed_before_its_lock(checkpoints, tmp_path, monkeypatch) -> None:
    """The run saved and ended after its age was read."""
    first, second, third = make_root(tmp_path)

    def lock_after_a_save(directory: Path) -> RunLock:
        if directory == second:
            save(second, 60, {"saved_at": "2025-12-24T00:00:00.000+00:00"})
        return RunLock(directory)

    monkeypatch.setattr(prune, "RunLock", lock_after_a_save)
    done = checkpoints("prune", tmp_path, "--keep-runs", "1", "--yes")
    assert f"kept {second}: it was trained while this command was starting" in done.out
    assert (second / "checkpoints" / "rolling_step_000060.pt").exists()
    assert first.exists() and not third.exists()


def test_prune_plans_again_once_the_run_is_locked(checkpoints, run, monkeypatch) -> None:
    """After a rollback, a run may have saved again a file that the plan would delete."""

    def lock_after_going_back(directory: Path) -> RunLock:
        for path in (run / "checkpoints").glob("rolling_step_0000[23]*"):
            path.unlink()
        return RunLock(directory)

    monkeypatch.setattr(prune, "RunLock", lock_after_going_back)
    assert checkpoints("prune", run, "--keep-rolling=1", "--yes").code == 0
    assert "rolling_step_000010.pt" in names(run)


def test_keep_runs_keeps_files_of_the_user(checkpoints, tmp_path) -> None:
    _, second, third = make_root(tmp_path)
    mine = {"notes.txt", "checkpoints/mine.pt", "checkpoints/kept/latest.pt", "tensorboard/a.png"}
    for name in mine:
        (third / name).parent.mkdir(exist_ok=True)
        (third / name).write_text("mine")
    done = checkpoints("prune", tmp_path, "--keep-runs", "1", "--yes")
    assert set(tree(third)) == mine
    assert f"  kept {third}/notes.txt: the run did not create it\n" in done.out
    assert not second.exists()
    assert not (third / ".hydra").exists()


def test_prune_of_pools_and_runs_together(checkpoints, tmp_path) -> None:
    first, *_ = make_root(tmp_path)
    checkpoints("prune", tmp_path, "--keep-runs=1", "--keep-rolling=1", "--yes")
    assert list(tmp_path.iterdir()) == [first]
    rolling = [name for name in names(first) if name.startswith("rolling_step")]
    assert rolling == ["rolling_step_000040.pt"]


def test_keep_runs_keeps_a_run_of_unknown_age(checkpoints, tmp_path) -> None:
    for name in ("a", "b"):
        save(tmp_path / name, 1, {"saved_at": None})
    checkpoints("prune", tmp_path, "--keep-runs=1", "--yes")
    assert (tmp_path / "a").exists()
    assert (tmp_path / "b").exists()


def test_prune_of_a_copied_checkpoints_folder(checkpoints, run, tmp_path) -> None:
    shutil.copytree(run / "checkpoints", tmp_path / "copy")
    checkpoints("prune", tmp_path / "copy", "--keep-rolling=1", "--yes")
    assert not (tmp_path / "copy" / "rolling_step_000010.pt").exists()


FILES = st.lists(
    st.tuples(
        st.sampled_from(["rolling_step_{:06d}.pt", "emergency_step_{:06d}_20251106_120000.pt"]),
        *(st.integers(1, 9), st.booleans(), st.sampled_from(["", "abandoned", "corrupt"])),
    ),
    max_size=9,
    unique_by=lambda file: (file[0], file[1], file[3]),
)


@given(
    FILES,
    st.booleans(),
    st.builds(PruneLimits, *[st.none() | st.integers(0, 3)] * 3, *[st.booleans()] * 2),
)
def test_plan_never_deletes_the_last_valid_state(files, live, limits) -> None:
    run = RunPaths(Path("run"), Path("run/checkpoints"))
    entries, valid = [], set()
    for number, (form, step, is_valid, aside) in enumerate(files):
        role = form.partition("_")[0]
        group = ListGroup(aside or role)
        path = run.folder / aside / form.format(step)
        inode = Inode((0, number), 1, 10, 4096)
        meta = CheckpointMeta.from_dict({"step": step})
        entries.append(ListedCheckpoint(path, run, group, aside or role, inode, meta))
        if is_valid:
            valid.add(path)
    decided = plan_prune(entries, limits, lambda entry: entry.path in valid, is_live=live)
    gone = {entry.path for entry in decided.surplus}
    assert gone <= {entry.path for entry in entries}
    if gone:
        assert valid - gone
    assert freed_bytes(decided.surplus) == 4096 * len(gone)


def test_prune_of_a_trained_run(checkpoints, real) -> None:
    assert checkpoints("prune", real, "--keep-rolling=1", "--keep-epochs=0", "--yes").code == 0
    assert checkpoints("verify", real).code == 0
    other = real.with_name("gpt2_run_20991231_235959")
    save(other, 1, {"saved_at": datetime(2099, 1, 1).astimezone().isoformat()})
    done = checkpoints("prune", real.parent, "--keep-runs=1", "--yes")
    assert done.code == 0
    assert list(real.parent.iterdir()) == [other]
