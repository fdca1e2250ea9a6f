"""The best model is the one in its file, after failed saves, restarts, rollbacks and damage."""

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
from checkpoint_helpers import flip_random_byte, request, small_state, step_of

from gpt2ckpt.checkpoint.best import Best
from gpt2ckpt.checkpoint.manager import CheckpointManager, ManagedRun, SavingOptions
from gpt2ckpt.checkpoint.newest_valid import Found
from gpt2ckpt.checkpoint.reading import load, load_state
from gpt2ckpt.checkpoint.retention import Retention
from gpt2ckpt.checkpoint.state import CheckpointMeta
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.files import durable

RUN = "1a2b3c4d"
BEST = "best_model.pt"


def state(step: int, loss: float, best_step: int | None = None, run: str = RUN) -> dict[str, Any]:
    """A state that was evaluated; without `best_step` it is itself the best."""
    return {
        **small_state(step),
        "run": {"id": run},
        "val_loss": loss,
        "best_step": step if best_step is None else best_step,
        "data": {"evaluated_on": "b" * 32, "digest": "d" * 32},
    }


def found(step: int, loss: float) -> Best:
    return Best(loss, step, "b" * 32, "d" * 32)


def opened(
    folder: Path,
    known: CheckpointMeta | None = None,
    source: Path | None = None,
    **more: Any,
) -> CheckpointManager:
    latest = folder / "latest.pt"
    if source is None and latest.exists():
        source, known = latest, known or load_state(latest)
    run, options = ManagedRun(RUN, known), SavingOptions(**more)
    return CheckpointManager(folder, Retention(3, 3), source, run=run, options=options)


def save(manager: CheckpointManager, step: int, loss: float, best_step: int | None = None) -> None:
    is_best = best_step is None
    manager.save(state(step, loss, best_step), request(step, regular=True, best=is_best))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The best is of step 20, the one before of step 10, and the latest of step 30."""
    manager = opened(tmp_path)
    assert manager.best() is None
    for step, loss, best_step in ((10, 3.0, None), (20, 2.0, None), (30, 2.5, 20)):
        save(manager, step, loss, best_step)
        assert manager.best() == found(min(step, 20), min(loss, 3.0 if step == 10 else 2.0))
    manager.close()
    return tmp_path


def test_new_process_reads_best_from_file(folder: Path) -> None:
    assert opened(folder).best() == found(20, 2.0)
    assert opened(folder, known=CheckpointMeta.from_dict({})).best() == found(20, 2.0)


def fail(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the writing of a file end in a full disk."""
    real = durable.publish

    def publish(target: Path, *arguments: Any, **options: Any) -> None:
        if name in target.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(target, *arguments, **options)

    monkeypatch.setattr(durable, "publish", publish)


def test_failed_save_of_best_does_not_count_as_best(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = opened(folder)
    with monkeypatch.context() as patch:
        fail(patch, "rolling_step_000040")
        save(manager, 40, 1.0)
    assert manager.best() == found(20, 2.0)
    save(manager, 50, 1.5, best_step=40)  # as the state had it, had nobody looked
    assert opened(folder).best() == found(20, 2.0)


def test_save_that_fails_after_best_was_renamed_counts_as_best(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = opened(folder)
    fail(monkeypatch, "best_model_backup")
    save(manager, 40, 1.0)
    assert manager.failed_step == 40
    assert step_of(folder / BEST) == 40
    assert manager.best() == found(40, 1.0)


@pytest.mark.parametrize("fails", [False, True])
def test_best_being_written_counts_until_its_save_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    manager = opened(folder, in_background=True)
    manager.wait()
    begins, goes_on = threading.Event(), threading.Event()
    real = Store.put

    def put(self: Store, *arguments: Any, **options: Any) -> Path:
        begins.set()
        assert goes_on.wait(60)
        if fails:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *arguments, **options)

    monkeypatch.setattr(Store, "put", put)
    save(manager, 40, 1.0)
    assert begins.wait(60)
    assert manager.best() == found(40, 1.0)
    threading.Timer(0.2, goes_on.set).start()
    assert manager.best(settled=True) == (found(20, 2.0) if fails else found(40, 1.0))
    manager.close()


def test_deleted_best_is_restored_from_copy(folder: Path) -> None:
    (folder / BEST).unlink()
    assert opened(folder).best() == found(20, 2.0)
    assert step_of(folder / BEST) == 20
    (folder / BEST).unlink()
    (folder / "best_model_backup.pt").unlink()
    assert opened(folder).best() == found(20, 2.0)  # from the rolling file of that step
    assert step_of(folder / "best_model_backup.pt") == 20


def test_without_best_file_next_evaluation_is_best(folder: Path) -> None:
    for path in [*folder.glob("best_model*"), *folder.glob("*20.pt"), *folder.glob("latest_b*")]:
        path.unlink()
    manager = opened(folder)
    assert manager.best() is None
    save(manager, 40, 9.0)
    assert manager.best() == found(40, 9.0)


def test_damaged_best_is_replaced_by_copy(folder: Path) -> None:
    flip_random_byte(folder / BEST, seed=1)
    assert opened(folder).best() == found(20, 2.0)
    assert load(folder / BEST)["step"] == 20
    assert [path.name for path in folder.glob("corrupt_*/best*")] == [BEST]


def test_damaged_best_without_copy_is_quarantined(folder: Path) -> None:
    for name in (BEST, "best_model_backup.pt"):  # the first is rolling_step_000020.pt, too
        flip_random_byte(folder / name, seed=1)
    manager = opened(folder)
    assert manager.best() is None
    assert not (folder / BEST).exists()
    save(manager, 40, 9.0)
    assert manager.best() == found(40, 9.0)
    assert step_of(folder / "best_model_previous.pt") == 10  # no damaged file took its place


def test_best_of_another_run_is_ignored(folder: Path, tmp_path: Path) -> None:
    other = CheckpointManager(tmp_path / "other", Retention(1, 1), None, run=ManagedRun("ffff0000"))
    other.save(state(15, 0.5, run="ffff0000"), request(15, best=True))
    (folder / BEST).unlink()
    (folder / BEST).write_bytes((tmp_path / "other" / BEST).read_bytes())
    assert opened(folder).best() == found(20, 2.0)
    assert len(list(folder.glob(f"corrupt_*/{BEST}"))) == 1


@pytest.mark.parametrize("loss", [float("nan"), None, "low", 2])
def test_file_without_finite_loss_is_not_best(tmp_path: Path, loss: Any) -> None:
    manager = opened(tmp_path)
    manager.save({**state(10, 1.0), "val_loss": loss}, request(10, best=True))
    assert manager.best() is None


def test_rollback_restores_best_of_earlier_step(folder: Path) -> None:
    manager = opened(folder)
    source = folder / "rolling_step_000010.pt"
    manager.roll_back_to(Found(source, load_state(source)))
    assert manager.best() == found(10, 3.0)
    assert {path.name for path in folder.glob("best*.pt")} == {
        *(BEST, "best_model_backup.pt", "best_model_previous.pt"),
    }
    assert step_of(folder / "best_model_backup.pt") == 10


def test_losses_are_compared_only_on_same_blocks() -> None:
    one = found(20, 2.0)
    assert one.is_on("b" * 32, "other")
    assert not one.is_on("c" * 32, "d" * 32)
    older = Best(2.0, 20, None, "d" * 32)  # a file that does not say on which blocks
    assert older.is_on("c" * 32, "d" * 32)
    assert not older.is_on("c" * 32, "e" * 32)


def test_save_never_replaces_valid_file_by_damaged_one(folder: Path) -> None:
    """Resumed from another file than latest.pt, which nobody has looked at yet."""
    source = folder / "rolling_step_000020.pt"
    flip_random_byte(folder / "latest.pt", seed=1)
    manager = CheckpointManager(
        folder, Retention(3, 3), source, run=ManagedRun(RUN, load_state(source))
    )
    save(manager, 40, 2.5, best_step=20)
    steps = {path.name: load(path)["step"] for path in Store(folder).files()}
    assert steps["latest.pt"] == 40
    assert steps["latest_backup.pt"] == 30  # repaired from the second copy, and then moved
    assert len(list(folder.glob("corrupt_*/*.pt"))) == 2
