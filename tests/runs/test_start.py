"""Anew, as a continuation, or as a fork: what a command line decides before anything is written."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from run_helpers import damage, frozen_of, save, tree

from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.errors import CheckpointError, ConfigError, InputError
from gpt2ckpt.runs.history import RunIdentity, begin, identity_in
from gpt2ckpt.runs.lock import RunLock
from gpt2ckpt.runs.start import Start, find_start, hydra_record, take_directory


def compose(overrides: list[str]) -> dict[str, Any]:
    return compose_config("train", overrides).values


def start(overrides: list[str], given: Path | None = None, outputs: Path = Path("no")) -> Start:
    return find_start(compose(overrides), overrides, given, outputs, compose)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "gpt2_run_20251106_120000"
    for step in (2, 4, 6):
        save(run, step, ["optimizer.lr=1e-3"])
    return run


def test_a_new_run_has_no_state_and_an_identity_of_its_own(tmp_path: Path) -> None:
    first, second = start(["seed=3"]), start(["+resume=auto"], outputs=tmp_path)
    assert first.state is None and first.directory is None and first.notices() == []
    assert first.frozen == frozen_of(("seed=3",))
    assert first.overrides == ["seed=3"]
    assert second.state is None
    assert first.identity.id != second.identity.id
    assert first.identity.parent is None


def test_a_resume_goes_on_in_its_directory_with_its_identity(run: Path) -> None:
    found = start(["+resume=latest", "trainer.max_steps=9"], run)
    assert found.directory == run
    assert found.state is not None and found.state["step"] == 6
    assert found.identity.id == "1a2b3c4d"
    assert found.frozen == frozen_of(("optimizer.lr=1e-3", "trainer.max_steps=9"))
    assert found.overrides == ["optimizer.lr=1e-3", "trainer.max_steps=9"]
    assert found.notices() == [
        f"resuming from {run}/checkpoints/latest.pt, step 6",
        "trainer.max_steps: null → 9  (changes the trajectory)",
    ]


def test_an_override_given_again_is_recorded_last(run: Path) -> None:
    """The order is what later resumes compose: the last one counts."""
    save(run, 8, ["optimizer.lr=1e-3", "optimizer.lr=2e-3"])
    found = start(["+resume=latest", "optimizer.lr=1e-3"], run)
    assert found.overrides == ["optimizer.lr=2e-3", "optimizer.lr=1e-3"]
    assert found.notices()[-1] == "optimizer.lr: 0.002 → 0.001  (changes the trajectory)"


def test_a_skipped_file_is_named_with_its_reason(run: Path) -> None:
    damage(run / "checkpoints" / "latest.pt")
    found = start(["+resume=latest"], run)
    assert found.notices()[0].startswith(f"skipped {run}/checkpoints/latest.pt: ")
    assert "damaged" in found.notices()[0]


def test_a_fork_starts_a_new_directory_and_records_its_parent(run: Path) -> None:
    path = run / "checkpoints" / "rolling_step_000004.pt"
    before = tree(run)
    found = start([f"+resume={path}", "+fork=true"], run)
    assert found.directory is None
    assert found.identity.id != "1a2b3c4d"
    assert found.identity.parent == {"id": "1a2b3c4d", "step": 4, "file": str(path)}
    assert found.notices() == [f"forking from {path}, step 4"]
    claimed = take_directory(found, run.parent / "forked", is_given=True)
    assert claimed.directory == run.parent / "forked"
    assert tree(run) == before
    claimed.lock.release()


def test_a_live_run_can_be_forked_but_not_resumed(run: Path) -> None:
    with RunLock(run):
        assert start(["+resume=latest", "+fork=true"], run).directory is None
        with pytest.raises(InputError, match="is being trained by process"):
            start(["+resume=latest"], run)


def test_a_fork_that_never_came_to_a_save_begins_again_where_it_began(run: Path) -> None:
    """`auto` used to start it from nothing: another training in its place, without a word."""
    path, fork = run / "checkpoints" / "rolling_step_000004.pt", run.parent / "forked"
    first = start([f"+resume={path}", "+fork=true"])
    take_directory(first, fork, is_given=True).lock.release()
    again = start(["+resume=auto", "trainer.max_steps=9"], fork)
    assert again.notices()[0] == f"forking from {path}, step 4"
    assert again.begins_again
    claimed = take_directory(again, fork, is_given=True)
    assert claimed.directory == fork
    claimed.lock.release()
    assert identity_in(fork, again.identity).id == first.identity.id
    assert start(["+resume=auto"], fork).state is not None
    path.unlink()
    before = tree(fork)
    with pytest.raises(CheckpointError, match=r"forked is a fork of .*, which is gone"):
        start(["+resume=auto"], fork)
    assert tree(fork) == before


@pytest.mark.parametrize("words", [["+resume=latest"], ["+resume=auto"], []])
def test_a_folder_with_a_checkpoint_s_name_is_refused(run: Path, words: list[str]) -> None:
    """The run went on, and each of its saves failed."""
    if words != ["+resume=latest"]:
        run = run.parent / "new"
    folder = run / "checkpoints" / "latest.pt"
    folder.unlink(missing_ok=True)
    folder.mkdir(parents=True)
    before = tree(run.parent)
    with pytest.raises(InputError, match=r"latest\.pt is a folder where checkpoints are saved"):
        take_directory(start(words, run), run, is_given=True)
    assert tree(run.parent) == before


def test_another_run_s_state_in_this_one_is_passed_over_or_refused(run: Path) -> None:
    """Copied over latest.pt, it was trained on from as if it were this run's."""
    begin(run, RunIdentity("1a2b3c4d", "gpt2"), frozen_of(("optimizer.lr=1e-3",)))
    folder, other = run / "checkpoints", run.parent / "other"
    foreign = save(other, 9, owner={"id": "ffffffff", "name": "gpt2", "parent": None})
    (folder / "latest.pt").unlink()
    shutil.copy(foreign, folder / "latest.pt")
    found = start(["+resume=latest"], run)
    assert found.state is not None and found.state["step"] == 6
    assert (
        "latest.pt: cannot be used as latest.pt: it is a state of another run, ffffffff"
        in (found.notices()[0])
    )
    claimed = take_directory(found, run, is_given=True)
    claimed.lock.release()
    shutil.copy(foreign, folder)
    before = tree(run)
    with pytest.raises(CheckpointError, match=r"009\.pt is a state of another run, ffffffff"):
        start([f"+resume={folder / foreign.name}"])
    assert start([f"+resume={folder / foreign.name}", "+fork=true"]).directory is None
    assert tree(run) == before


def test_a_lone_file_starts_a_new_run(run: Path, tmp_path: Path) -> None:
    copy = shutil.copy(run / "checkpoints" / "latest.pt", tmp_path / "kept.pt")
    assert start([f"+resume={copy}"]).directory is None


def test_a_change_that_cannot_be_followed_writes_nothing(run: Path) -> None:
    before = tree(run)
    for word in ("model.n_layer=9", "optimizer=muon", "optimizer.lrr=3"):
        with pytest.raises(ConfigError):
            start(["+resume=latest", word], run)
    assert tree(run) == before


def test_a_config_of_another_project_is_said_to_be_one(tmp_path: Path) -> None:
    from gpt2ckpt.checkpoint import format

    path = tmp_path / "odd.pt"
    state = {"format": format.FORMAT, "step": 1, "model": {}, "config": {}, "overrides": None}
    path.write_bytes(b"".join(format.encode(state).buffers))
    with pytest.raises(CheckpointError, match=r"odd\.pt holds no config that can be replayed"):
        start([f"+resume={path}", "seed=3"])


def test_a_resume_at_the_newest_step_sets_nothing_aside(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": 6, "train_loss": 1.5}\n')
    before = tree(run / "checkpoints")
    claimed = take_directory(start(["+resume=latest"], run), run, is_given=True)
    assert claimed.notice == ""
    assert tree(run / "checkpoints") == before
    claimed.lock.release()


@pytest.mark.parametrize(("content", "word"), [(None, "is gone"), ("torn", "holds no events")])
def test_a_history_that_is_gone_is_said(run: Path, content: str | None, word: str) -> None:
    if content:
        (run / "metrics.jsonl").write_text(content)
    claimed = take_directory(start(["+resume=latest"], run), run, is_given=True)
    expected = f"{run}/metrics.jsonl {word}: the history of this run begins after step 6"
    first, *more = claimed.notice.splitlines()
    assert first == expected
    assert len(more) == (1 if content else 0)  # what was in it is quarantined
    claimed.lock.release()


def test_a_resume_from_an_older_step_keeps_the_later_ones(run: Path) -> None:
    folder = run / "checkpoints"
    later = (folder / "rolling_step_000006.pt").read_bytes()
    chosen = folder / "rolling_step_000004.pt"
    claimed = take_directory(start([f"+resume={chosen}"]), run, is_given=True)
    [aside] = folder.glob("abandoned_*")
    assert f"set aside in {aside}" in claimed.notice
    assert (aside / "rolling_step_000006.pt").read_bytes() == later
    assert not (folder / "rolling_step_000006.pt").exists()
    assert (folder / "latest.pt").read_bytes() == chosen.read_bytes()
    claimed.lock.release()


def test_taking_a_live_runs_directory_fails_and_changes_nothing(run: Path) -> None:
    found = start([f"+resume={run / 'checkpoints' / 'rolling_step_000004.pt'}"])
    with RunLock(run):
        before = tree(run)
        with pytest.raises(InputError, match="is being trained by"):
            take_directory(found, run, is_given=True)
        assert tree(run) == before


def test_hydra_records_every_launch_in_a_folder_of_its_own(tmp_path: Path) -> None:
    for expected in (".hydra", ".hydra/resume_1", ".hydra/resume_2"):
        assert hydra_record(tmp_path) == expected
        (tmp_path / expected).mkdir()
    (tmp_path / ".hydra" / "resume_10").mkdir()
    assert hydra_record(tmp_path) == ".hydra/resume_11"


def test_a_run_that_never_came_to_its_first_save_begins_again_only_when_asked_to_resume(
    tmp_path: Path,
) -> None:
    """A job script gives hydra.run.dir=DIR +resume=auto; a plain start must not mix two runs."""
    begun = tmp_path / "mine"
    begun.mkdir()
    (begun / "metrics.jsonl").write_text('{"step": 1, "train_loss": 4.0}\n')
    plain = take_directory(start(["seed=3"], begun), begun, is_given=True)
    assert plain.directory.name.startswith("mine_run_")
    again = take_directory(start(["seed=3", "+resume=auto"], begun), begun, is_given=True)
    assert again.directory == begun
    with pytest.raises(InputError, match="is being trained by"):
        start(["+resume=auto"], begun)
    plain.lock.release()
    again.lock.release()
