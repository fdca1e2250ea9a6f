"""A save that was killed between two names is completed from the file that it left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint_helpers import names_in, request, small_state, step_of

from gpt2ckpt.checkpoint import format, names
from gpt2ckpt.checkpoint.interrupted_save import complete_save, missing_operations
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.newest_valid import find_valid
from gpt2ckpt.checkpoint.retention import Retention
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.files import durable

WANTED = ["regular", "best", "emergency", "regular best", "epoch", "best epoch"]
WANTED += ["regular epoch", "regular best epoch"]
BLOCKS = 4  # of a step; an epoch has as many


class Killed(BaseException):
    """As a SIGKILL: nothing is tidied up after it."""


def put(folder: Path, step: int, wanted: str) -> None:
    reasons: dict[str, Any] = dict.fromkeys(wanted.split(), True)
    if reasons.pop("epoch", False):
        reasons["epoch_ended"] = step - 1
    state = {
        **small_state(step),
        "best_step": step if "best" in reasons else 1,
        "epoch": step,
        "data": {"position": step * BLOCKS, "blocks_per_epoch": BLOCKS},
        "config": {
            "checkpoint": {"save_best": True, "save_epochs": "epoch_ended" in reasons},
            "trainer": {"batch_size": BLOCKS, "grad_accum": 1},
        },
    }
    Store(folder).put(format.encode(state), request(step, **reasons), Retention(2, 2))


def new(folder: Path) -> Path:
    folder.mkdir()
    put(folder, 1, "regular best")
    return folder


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """The step of each name, and which of the names share blocks with it."""
    first: dict[int, int] = {}
    files = Store(folder).files()
    inodes = [path.stat().st_ino for path in files]
    groups = [first.setdefault(inode, len(first)) for inode in inodes]
    return {path.name: (step_of(path), group) for path, group in zip(files, groups, strict=True)}


def kill_after(patch: pytest.MonkeyPatch, names_made: int, act: Callable[[], object]) -> bool:
    """Let something end when it has made so many names; whether it had more to make."""
    made = 0

    def counted(real: Callable[..., None]) -> Callable[..., None]:
        def make(*arguments: Any, **options: Any) -> None:
            nonlocal made
            if made == names_made:
                raise Killed
            real(*arguments, **options)
            made += 1

        return make

    for name in ("publish", "link"):
        patch.setattr(durable, name, counted(getattr(durable, name)))
    try:
        act()
    except Killed:
        return True
    return False


@pytest.mark.parametrize("wanted", WANTED)
def test_completed_save_equals_uninterrupted_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    """However often the finishing is killed in turn."""
    whole = new(tmp_path / "whole")
    put(whole, 2, wanted)
    assert missing_operations(whole, find_valid(whole, Role.LATEST)) == []
    cut, is_cut = 0, True
    while is_cut:
        cut += 1
        folder = new(tmp_path / f"cut_{cut}")
        with monkeypatch.context() as patch:
            is_cut = kill_after(patch, cut, lambda folder=folder: put(folder, 2, wanted))
        assert is_cut == (contents(folder) != contents(whole))
        for made in range(1, 12):
            found = find_valid(folder, Role.LATEST)
            assert found.state.step == 2
            with monkeypatch.context() as patch:
                if not kill_after(patch, made, lambda f=folder, it=found: complete_save(f, it)):
                    break
        assert contents(folder) == contents(whole)
        assert missing_operations(folder, found) == []
        seals = {path.read_bytes()[-32:] for path in folder.iterdir() if step_of(path) == 2}
        assert len(seals) == 1, "the state was written otherwise than it was saved"
    assert cut >= 3


def test_missing_backup_is_restored_and_nothing_else_changes(tmp_path: Path) -> None:
    folder = new(tmp_path / "run")
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    for name in (names.ROLLING_BACKUP, names.BEST_BACKUP):
        (folder / name).unlink()
        assert complete_save(folder, find_valid(folder, Role.LATEST)) == [name]
        assert step_of(folder / name) == 1
        del before[name]
    assert {name: (folder / name).stat().st_ino for name in before} == before


def test_older_abandoned_and_damaged_states_have_no_missing_operations(tmp_path: Path) -> None:
    folder = new(tmp_path / "run")
    put(folder, 2, "regular")
    store = Store(folder)
    assert missing_operations(folder, find_valid(folder, Role.BEST)) == []
    archive = store.roll_back_to(folder / names.rolling(1), 1, request(1).when)
    assert archive is not None
    assert missing_operations(folder, find_valid(archive, Role.ROLLING)) == []
    (folder / names.LATEST).write_bytes(b"damaged")
    there = names_in(folder)
    assert complete_save(folder, find_valid(folder, Role.ROLLING)) == [
        names.ROLLING_BACKUP
    ]  # was archived
    assert names_in(folder) == there | {names.ROLLING_BACKUP}
    assert (folder / names.LATEST).read_bytes() == b"damaged"
