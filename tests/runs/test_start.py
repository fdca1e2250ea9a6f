"""Tests of the start of a new run, a resume or a fork, and of its directory."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from run_helpers import damage, frozen_of, save, tree

from gpt2ckpt.checkpoint.reading import step_of
from gpt2ckpt.checkpoint.state import ParentRun, RunIdentity
from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.errors import CheckpointError, ConfigError, InputError, LockedError
from gpt2ckpt.runs import claim, resume
from gpt2ckpt.runs.claim import Claim
from gpt2ckpt.runs.history import identity_in, start_history
from gpt2ckpt.runs.layout import hydra_record
from gpt2ckpt.runs.lock import RunLock, is_locked
from gpt2ckpt.runs.resume import Scope
from gpt2ckpt.runs.start import Start, find_start
from gpt2ckpt.runs.take_directory import archive_preview, take_directory


def compose(overrides: list[str]) -> dict[str, Any]:
    return compose_config("train", overrides).values


def start(overrides: list[str], given: Path | None = None, outputs: Path = Path("no")) -> Start:
    """Return the start of a dry run."""
    return find_start(compose(overrides), overrides, Scope(outputs, given), compose, locks=False)


def take(overrides: list[str], given: Path, wanted: Path | None = None) -> Claim:
    """Start a training run, up to its first step."""
    decided = find_start(
        compose(overrides), overrides, Scope(Path("no"), given), compose, locks=True
    )
    try:
        return take_directory(decided, wanted or given, is_given=True)
    except BaseException:
        with decided.held():
            raise


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "gpt2_run_20251106_120000"
    for step in (2, 4, 6):
        save(run, step, ["optimizer.lr=1e-3"])
    return run


def test_new_run_has_no_state_and_a_new_identity(tmp_path: Path) -> None:
    first, second = start(["seed=3"]), start(["+resume=auto"], outputs=tmp_path)
    assert first.state is None and first.directory is None and first.notices() == []
    assert first.frozen == frozen_of(("seed=3",))
    assert first.overrides == ["seed=3"]
    assert second.state is None
    assert first.identity.id != second.identity.id
    assert first.identity.parent is None


def test_resume_keeps_directory_and_identity(run: Path) -> None:
    found = start(["+resume=latest", "trainer.max_steps=9"], run)
    assert found.directory == run
    assert found.state is not None and found.state.step == 6
    assert found.identity.id == "1a2b3c4d"
    assert found.frozen == frozen_of(("optimizer.lr=1e-3", "trainer.max_steps=9"))
    assert found.overrides == ["optimizer.lr=1e-3", "trainer.max_steps=9"]
    assert found.notices() == [
        f"resuming from {run}/checkpoints/latest.pt, step 6",
        "trainer.max_steps: null → 9  (changes the trajectory)",
    ]


def test_repeated_override_is_recorded_last(run: Path) -> None:
    """Later resumes compose the overrides in this order: the last one wins."""
    save(run, 8, ["optimizer.lr=1e-3", "optimizer.lr=2e-3"])
    found = start(["+resume=latest", "optimizer.lr=1e-3"], run)
    assert found.overrides == ["optimizer.lr=2e-3", "optimizer.lr=1e-3"]
    assert found.notices()[-1] == "optimizer.lr: 0.002 → 0.001  (changes the trajectory)"


def test_skipped_file_is_named_with_the_reason(run: Path) -> None:
    damage(run / "checkpoints" / "latest.pt")
    found = start(["+resume=latest"], run)
    assert found.notices()[0].startswith(f"skipped {run}/checkpoints/latest.pt: ")
    assert "damaged" in found.notices()[0]


def test_fork_has_a_new_directory_and_records_its_parent(run: Path) -> None:
    path = run / "checkpoints" / "rolling_step_000004.pt"
    before = tree(run)
    found = start([f"+resume={path}", "+fork=true"], run)
    assert found.directory is None
    assert found.identity.id != "1a2b3c4d"
    assert found.identity.parent == ParentRun("1a2b3c4d", 4, str(path))
    assert found.notices() == [f"forking from {path}, step 4"]
    claimed = take_directory(found, run.parent / "forked", is_given=True)
    assert claimed.directory == run.parent / "forked"
    assert tree(run) == before
    claimed.lock.release()


def test_live_run_can_be_forked_but_not_resumed(run: Path) -> None:
    with RunLock(run):
        assert start(["+resume=latest", "+fork=true"], run).directory is None
        with pytest.raises(InputError, match="is being trained by process"):
            start(["+resume=latest"], run)


def test_fork_that_never_saved_restarts_from_its_origin(run: Path) -> None:
    """`auto` used to start a new training in its directory, without a message."""
    path, fork = run / "checkpoints" / "rolling_step_000004.pt", run.parent / "forked"
    first = start([f"+resume={path}", "+fork=true"])
    take_directory(first, fork, is_given=True).lock.release()
    words = ["+resume=auto", "trainer.max_steps=9"]
    again = start(words, fork)
    assert again.notices()[0] == f"forking from {path}, step 4"
    assert again.restarts_run
    claimed = take(words, fork)
    assert claimed.directory == fork
    claimed.lock.release()
    assert identity_in(fork, again.identity).id == first.identity.id
    assert start(["+resume=auto"], fork).state is not None
    path.unlink()
    before = tree(fork)
    with pytest.raises(CheckpointError, match=r"forked is a fork of .*, which is missing"):
        start(["+resume=auto"], fork)
    assert tree(fork) == before


@pytest.mark.parametrize("words", [["+resume=latest"], ["+resume=auto"], []])
def test_folder_with_the_name_of_a_checkpoint_is_refused(run: Path, words: list[str]) -> None:
    """The run used to train, and each of its saves failed."""
    if words != ["+resume=latest"]:
        run = run.parent / "new"
    folder = run / "checkpoints" / "latest.pt"
    folder.unlink(missing_ok=True)
    folder.mkdir(parents=True)
    before = tree(run)
    with pytest.raises(InputError, match=r"latest\.pt is a folder where checkpoints are saved"):
        take(words, run)
    assert tree(run) == before


def test_state_of_another_run_is_skipped_or_refused(run: Path) -> None:
    """A state copied over latest.pt used to be resumed as if it were this run's."""
    start_history(run, RunIdentity("1a2b3c4d", "gpt2"), frozen_of(("optimizer.lr=1e-3",)))
    folder, other = run / "checkpoints", run.parent / "other"
    foreign = save(other, 9, owner={"id": "ffffffff", "name": "gpt2", "parent": None})
    (folder / "latest.pt").unlink()
    shutil.copy(foreign, folder / "latest.pt")
    found = start(["+resume=latest"], run)
    assert found.state is not None and found.state.step == 6
    assert (
        "latest.pt: cannot be used as latest.pt: it belongs to a different run, ffffffff"
        in (found.notices()[0])
    )
    take(["+resume=latest"], run).lock.release()
    shutil.copy(foreign, folder)
    before = tree(run)
    with pytest.raises(CheckpointError, match=r"009\.pt belongs to run ffffffff"):
        start([f"+resume={folder / foreign.name}"])
    assert start([f"+resume={folder / foreign.name}", "+fork=true"]).directory is None
    assert tree(run) == before


def test_copied_file_starts_a_new_run(run: Path, tmp_path: Path) -> None:
    copy = shutil.copy(run / "checkpoints" / "latest.pt", tmp_path / "kept.pt")
    assert start([f"+resume={copy}"]).directory is None


def test_refused_change_writes_nothing(run: Path) -> None:
    before = tree(run)
    for word in ("model.n_layer=9", "optimizer=muon", "optimizer.lrr=3"):
        with pytest.raises(ConfigError):
            start(["+resume=latest", word], run)
    assert tree(run) == before


def test_config_of_another_project_is_refused(tmp_path: Path) -> None:
    from gpt2ckpt.checkpoint import format

    path = tmp_path / "odd.pt"
    state = {"format": format.FORMAT, "step": 1, "model": {}, "config": {}, "overrides": None}
    path.write_bytes(b"".join(format.encode(state).buffers))
    with pytest.raises(CheckpointError, match=r"odd\.pt does not hold the config of a run"):
        start([f"+resume={path}", "seed=3"])


def test_resume_at_the_newest_step_archives_nothing(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 6, "train_loss": 1.5}\n')
    before = tree(run / "checkpoints")
    claimed = take(["+resume=latest"], run)
    assert claimed.notice == ""
    assert tree(run / "checkpoints") == before
    claimed.lock.release()


@pytest.mark.parametrize(("content", "word"), [(None, "is missing"), ("torn", "holds no lines")])
def test_missing_history_is_reported(run: Path, content: str | None, word: str) -> None:
    if content:
        (run / "metrics.jsonl").write_text(content)
    claimed = take(["+resume=latest"], run)
    expected = f"{run}/metrics.jsonl {word}: the history of this run begins after step 6"
    first, *more = claimed.notice.splitlines()
    assert first == expected
    assert len(more) == (1 if content else 0)  # what was in it is quarantined
    claimed.lock.release()


def test_resume_from_an_older_step_archives_later_checkpoints(run: Path) -> None:
    folder = run / "checkpoints"
    later = (folder / "rolling_step_000006.pt").read_bytes()
    chosen = folder / "rolling_step_000004.pt"
    claimed = take([f"+resume={chosen}"], run)
    [archive] = folder.glob("abandoned_*")
    assert f"archived the checkpoints after step 4 in {archive}" in claimed.notice
    assert (archive / "rolling_step_000006.pt").read_bytes() == later
    assert not (folder / "rolling_step_000006.pt").exists()
    assert (folder / "latest.pt").read_bytes() == chosen.read_bytes()
    claimed.lock.release()


def test_dry_run_reports_which_checkpoints_a_resume_would_archive(run: Path) -> None:
    folder = run / "checkpoints"
    before = tree(folder)
    [line] = archive_preview(start([f"+resume={folder / 'rolling_step_000004.pt'}"], run))
    later = [path for path in folder.glob("*.pt") if (step_of(path) or 0) > 4]
    assert line == (
        f"would archive the checkpoints after step 4 ({len(later)} files) in {folder}/abandoned_…"
    )
    assert archive_preview(start(["+resume=latest"], run)) == []
    assert archive_preview(start(["seed=3"])) == []
    assert tree(folder) == before


def test_resume_reads_the_state_under_the_lock(run: Path) -> None:
    """Otherwise another process could resume and finish between reading and locking."""
    words, seen = ["+resume=latest", "seed=3"], []

    def compose_meanwhile(overrides: list[str]) -> dict[str, Any]:
        with pytest.raises(LockedError, match=f"is being trained by process {os.getpid()} on "):
            find_start(compose(words), words, Scope(run.parent, run), compose, locks=True)
        seen.append(overrides)
        return compose(overrides)

    decided = find_start(
        compose(words), words, Scope(run.parent, run), compose_meanwhile, locks=True
    )
    assert seen and is_locked(run)
    with decided.held():
        pass
    assert not is_locked(run)


@pytest.mark.parametrize("is_new", [True, False])
def test_state_saved_before_the_lock_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    """The newest state is located again once no other process can save."""
    run, real = tmp_path / "mine", resume.locate
    run.mkdir()
    if not is_new:
        save(run, 2)

    def locate(*args: Any) -> resume.Place | None:
        place = real(*args)
        if not is_locked(run):
            save(run, 8)
        return place

    monkeypatch.setattr(resume, "locate", locate)
    values = compose([]) | {"resume": "auto"}
    decided = find_start(values, [], Scope(tmp_path, run), compose, locks=True)
    with decided.held():
        assert decided.state is not None and decided.state.step == 8
        assert decided.directory == run


def test_restart_is_refused_if_another_process_saved_meanwhile(tmp_path: Path) -> None:
    begun, words = tmp_path / "mine", ["+resume=auto"]
    decided = find_start(compose(words), words, Scope(tmp_path, begun), compose, locks=True)
    assert decided.restarts_run and decided.lock is None
    save(begun, 2)
    before = tree(begun)
    with pytest.raises(InputError, match="another process saved the first checkpoint"):
        take_directory(decided, begun, is_given=True)
    assert tree(begun) == before and not is_locked(begun)


def test_run_replaced_by_another_directory_is_refused(run: Path) -> None:
    """A copy or another run may hold other states than the one that was read."""
    words = ["+resume=latest"]
    decided = find_start(compose(words), words, Scope(run.parent, run), compose, locks=True)
    with decided.held():
        shutil.move(run, run.parent / "moved")
        shutil.copytree(run.parent / "moved", run)
        (run / "run.lock").unlink()
        before = tree(run)
        with pytest.raises(InputError, match="a different directory has taken its place"):
            take_directory(decided, run, is_given=True)
        assert tree(run) == before


def test_new_run_gets_another_directory_if_its_own_was_taken_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, real = tmp_path / "mine", claim.RunLock

    def lock_after_another_run(directory: Path) -> RunLock:
        if directory == wanted:
            save(wanted, 2)
        return real(directory)

    monkeypatch.setattr(claim, "RunLock", lock_after_another_run)
    claimed = take_directory(start([]), wanted, is_given=True)
    claimed.lock.release()
    assert claimed.directory.name.startswith("mine_run_")
    assert not is_locked(wanted)


def test_finished_run_is_read_without_a_lock(run: Path) -> None:
    (run / "train.log").symlink_to("elsewhere")  # refused by the lock, and works for root, too
    words = ["+resume=latest"]
    decided = find_start(compose(words), words, Scope(run.parent, run), compose, locks=True)
    assert decided.state is not None and decided.lock is None
    with pytest.raises(InputError, match="is a symbolic link"):
        take_directory(decided, run, is_given=True)


def test_each_launch_has_its_own_hydra_record(tmp_path: Path) -> None:
    for expected in (".hydra", ".hydra/resume_1", ".hydra/resume_2"):
        assert hydra_record(tmp_path) == expected
        (tmp_path / expected).mkdir()
    (tmp_path / ".hydra" / "resume_10").mkdir()
    assert hydra_record(tmp_path) == ".hydra/resume_11"


def test_run_that_never_saved_restarts_only_with_resume(
    tmp_path: Path,
) -> None:
    """A start without resume must not mix two runs in one directory."""
    begun = tmp_path / "mine"
    begun.mkdir()
    (begun / "metrics.jsonl").write_text('{"step": 1, "train_loss": 4.0}\n')
    plain = take(["seed=3"], begun)
    assert plain.directory.name.startswith("mine_run_")
    again = take(["seed=3", "+resume=auto"], begun)
    assert again.directory == begun
    with pytest.raises(InputError, match="is being trained by"):
        start(["+resume=auto"], begun)
    plain.lock.release()
    again.lock.release()


def test_damaged_file_without_a_copy_is_quarantined_before_the_first_save(run: Path) -> None:
    """Otherwise it would count in its pool, and replace the last valid state."""
    folder = run / "checkpoints"
    for name in ("latest.pt", "rolling_last_backup.pt"):  # the first is rolling_step_000006.pt, too
        damage(folder / name)
    newest = {path.name for path in folder.iterdir() if path.samefile(folder / "latest.pt")}
    claimed = take(["+resume=latest"], run)
    claimed.lock.release()
    moved = {path.name for path in folder.glob("corrupt_*/*.pt")}
    assert moved == {*newest, "rolling_last_backup.pt"}
    assert claimed.notice.count("DAMAGED ON DISK") == 2
    assert claimed.notice.count("No copy of that state is left; it is kept in corrupt_") == 2
