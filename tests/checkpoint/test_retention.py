"""The files in a folder after random histories of saves, failures, kills and resumes."""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.retention import (
    Delete,
    Link,
    Operation,
    Publish,
    Retention,
    SaveRequest,
    copies,
    most_files,
    plan_save,
)

NOON = datetime(2025, 11, 6, 12, 0, 0)
POOLS = {
    Role.ROLLING: "keep_rolling",
    Role.EMERGENCY: "keep_emergency",
    Role.EPOCH: "keep_epochs",
}


@dataclass(frozen=True, eq=False)
class State:
    """A complete state in blocks of its own on the simulated disk."""

    step: int


Folder = dict[str, State]


def apply(folder: Folder, operation: Operation, step: int) -> None:
    match operation:
        case Publish(name):
            folder[name] = State(step)
        case Link(source, name):
            folder[name] = folder[source]
        case Delete(name):
            del folder[name]


def pool(folder: Collection[str], role: Role) -> list[str]:
    """The names of a pool, oldest first."""
    mine = [name for name in folder if names.role_of(name) is role]
    return sorted(mine, key=lambda name: (names.number_in(name), name))


@dataclass(frozen=True)
class Save:
    """One save of a history; `stopped_after` operations the process is killed or the save fails."""

    steps: int
    regular: bool
    emergency: bool
    best: bool
    epoch: bool
    stopped_after: int | None
    killed: bool

    def request(self, step: int, epoch: int, when: datetime) -> SaveRequest:
        regular = self.regular or not (self.emergency or self.best or self.epoch)
        ended = epoch if self.epoch else None
        return SaveRequest(step, when, regular, self.emergency, self.best, ended)


saves = st.builds(
    Save,
    steps=st.integers(1, 400_000),
    regular=st.booleans(),
    emergency=st.booleans(),
    best=st.booleans(),
    epoch=st.booleans(),
    stopped_after=st.none() | st.integers(0, 14),
    killed=st.booleans(),
)
few = st.integers(0, 3)
retentions = st.builds(Retention, few, few, st.none() | few)


@dataclass
class Simulation:
    """One run: its folder, and the newest step that a save was acknowledged for."""

    retention: Retention
    folder: Folder = field(default_factory=dict)
    pinned: frozenset[str] = frozenset()
    step: int = 0
    acknowledged: int = -1
    now: datetime = NOON

    def save(self, save: Save, epoch: int) -> None:
        self.step += save.steps
        self.now += timedelta(seconds=1)
        request = save.request(self.step, epoch, self.now)
        before = dict(self.folder)
        operations = plan_save(self.folder, request, self.retention, self.pinned)
        assert operations == plan_save(
            sorted(before, reverse=True), request, self.retention, self.pinned
        )
        for done, operation in enumerate(operations):
            if save.stopped_after == done:
                self.check_roles_hold(before)
                if save.killed:
                    self.resume()
                return
            apply(self.folder, operation, self.step)
            self.check_prefix(before, operation)
        self.check_done(before, request, operations)
        self.acknowledged = self.step

    def resume(self) -> None:
        """Go on from latest, or the newest; what is later is archived, as Store does it."""
        if not self.folder:
            self.step, self.pinned = 0, frozenset()
            return
        newest = max(self.folder, key=lambda name: self.folder[name].step)
        chosen = names.LATEST if names.LATEST in self.folder else newest
        self.step = self.folder[chosen].step
        assert self.step >= self.acknowledged
        self.folder = {n: state for n, state in self.folder.items() if state.step <= self.step}
        self.pinned = frozenset({chosen, *pool(self.folder, Role.ROLLING)[-1:]})

    def check_prefix(self, before: Folder, operation: Operation) -> None:
        """What holds after every single operation."""
        steps = {state.step for state in self.folder.values()}
        assert max(steps, default=-1) >= self.acknowledged
        assert names.LATEST not in before or self.folder[names.LATEST].step >= self.acknowledged
        pools = {name for role in POOLS for name in pool(before, role)}
        assert before.keys() - self.folder.keys() <= pools
        assert self.pinned & before.keys() <= self.folder.keys()
        if isinstance(operation, Delete):
            assert self.folder[names.LATEST].step == self.step

    def check_roles_hold(self, before: Folder) -> None:
        """However far a save came, each role stands for its old state or the one that follows."""
        follows = {names.LATEST_BACKUP: names.LATEST, names.BEST_PREVIOUS: names.BEST}
        for name in before.keys() & self.folder.keys():
            old, state = before[name], self.folder[name]
            assert state is old or state.step == self.step or state is before[follows[name]]
        published = {state.step for state in self.folder.values()} >= {self.step}
        assert published or self.folder == before, "a role moved before the new state was there"

    def check_done(self, before: Folder, request: SaveRequest, operations: list[Operation]) -> None:
        """What holds once a save has ended."""
        folder = self.folder
        assert folder[names.LATEST].step == self.step
        if names.LATEST in before:
            assert folder[names.LATEST_BACKUP] is before[names.LATEST]
        for role, keep in POOLS.items():
            kept, limit = pool(folder, role), getattr(self.retention, keep)
            newest = pool({*before, *folder}, role)
            if limit is not None:
                newest = newest[max(0, len(newest) - limit) :]
            assert set(kept) == {*newest, *(self.pinned & before.keys() & set(kept))}
            assert limit is None or len(set(kept) - self.pinned) <= limit
        blocks = {state for state in folder.values() if state.step == self.step}
        published = [operation for operation in operations if isinstance(operation, Publish)]
        assert len(published) == copies(request)
        assert len(blocks) >= (2 if request.regular or request.best else 1)
        self.check_reasons(before, request)

    def check_reasons(self, before: Folder, request: SaveRequest) -> None:
        folder, latest = self.folder, self.folder[names.LATEST]
        if request.regular:
            backup = folder[names.ROLLING_BACKUP]
            assert backup.step == self.step
            assert backup is not latest
            if self.retention.keep_rolling:
                assert folder[names.rolling(self.step)] is latest
        if request.emergency and self.retention.keep_emergency:
            assert folder[names.emergency(self.step, self.now)] is latest
        if request.epoch_ended is not None and self.retention.keep_epochs != 0:
            assert folder[names.epoch(request.epoch_ended)] is latest
        if request.best:
            assert folder[names.BEST] is latest
            assert folder[names.BEST_BACKUP].step == self.step
            assert folder[names.BEST_BACKUP] is not folder[names.BEST]
            if names.BEST in before:
                assert folder[names.BEST_PREVIOUS] is before[names.BEST]
        else:
            for name in (names.BEST, names.BEST_BACKUP, names.BEST_PREVIOUS):
                assert folder.get(name) is before.get(name)


@settings(max_examples=1000, deadline=None)
@given(st.lists(saves, min_size=1, max_size=14), retentions)
def test_random_histories(history: list[Save], retention: Retention) -> None:
    simulation = Simulation(retention)
    for epoch, save in enumerate(history):
        simulation.save(save, epoch)


reasons = st.fixed_dictionaries(
    {"regular": st.booleans(), "emergency": st.booleans(), "best": st.booleans()}
).filter(lambda chosen: any(chosen.values()))
foreign = ["notes.txt", "rolling_step_1.pt", "my_latest.pt", "epoch_1.pt", "latest.pt.bak"]


@settings(max_examples=200, deadline=None)
@given(reasons, retentions, st.sets(st.integers(0, 3_000_000), max_size=8), st.randoms())
def test_only_pools_lose_files_and_never_pinned_ones(
    chosen: dict[str, bool], retention: Retention, steps: set[int], chance: Any
) -> None:
    present = {names.LATEST, names.BEST, *foreign}
    present |= {names.epoch(step) for step in steps}
    present |= {names.rolling(step) for step in steps}
    present |= {names.emergency(step, NOON) for step in steps}
    pinned = {name for name in present if chance.random() < 0.3}
    operations = plan_save(present, SaveRequest(4_000_000, NOON, **chosen), retention, pinned)
    deleted = {op.name for op in operations if isinstance(op, Delete)}
    assert deleted <= present - pinned - set(foreign) | {names.rolling(4_000_000)} | {
        names.emergency(4_000_000, NOON)
    }
    assert {names.role_of(name) for name in deleted} <= set(POOLS)
    if retention.keep_epochs is None:
        assert not pool(deleted, Role.EPOCH)
    kinds = [type(operation) for operation in operations]
    assert Delete not in kinds or not {Publish, Link} & set(kinds[kinds.index(Delete) :])
    assert kinds[0] is Publish


def deleted_by(present: set[str], request: SaveRequest, keep: int) -> set[str]:
    operations = plan_save(present, request, Retention(keep, keep))
    return {operation.name for operation in operations if isinstance(operation, Delete)}


@settings(max_examples=300, deadline=None)
@given(st.lists(saves, min_size=1, max_size=30), st.builds(Retention, *[st.integers(1, 3)] * 3))
def test_number_of_files_never_exceeds_announced_bound(
    history: list[Save], retention: Retention
) -> None:
    """Counted in blocks of their own, at every instant: while a copy is written, it counts too."""
    folder: Folder = {}
    step, most = 0, most_files(retention, epochs=len(history))
    pinned: frozenset[str] = frozenset()
    for epoch, save in enumerate(history):
        step += save.steps
        request = save.request(step, epoch, NOON + timedelta(seconds=epoch))
        if save.killed:  # between two saves
            pinned = frozenset({names.LATEST, *pool(folder, Role.ROLLING)[-1:]} & folder.keys())
        for operation in plan_save(folder, request, retention, pinned):
            is_written = isinstance(operation, Publish)
            assert len({*folder.values()}) + is_written <= most
            apply(folder, operation, step)
    assert len(pool(folder, Role.EPOCH)) <= retention.keep_epochs + 1
    assert most_files(Retention(2, 2, None), epochs=50) == most_files(Retention(2, 2, 60), 50)


def test_order_is_by_step_not_by_the_length_of_a_name() -> None:
    steps = [999_998, 999_999, 1_000_000, 10_000_000]
    present = {names.rolling(step) for step in steps}
    request = SaveRequest(10_000_001, NOON, regular=True)
    assert deleted_by(present, request, keep=3) == {names.rolling(999_998), names.rolling(999_999)}


def test_emergencies_of_one_step_are_ordered_by_time() -> None:
    times = [NOON + timedelta(days=day) for day in range(3)]
    present = {names.emergency(5, when) for when in times[:2]}
    request = SaveRequest(5, times[2], emergency=True)
    assert deleted_by(present, request, keep=2) == {names.emergency(5, times[0])}


def test_new_save_is_kept_beside_stray_file_of_later_step() -> None:
    present = {names.rolling(900), names.rolling(100)}
    request = SaveRequest(200, NOON, regular=True)
    assert deleted_by(present, request, keep=1) == present


def test_regular_and_emergency_pools_are_separate() -> None:
    present = {names.rolling(step) for step in range(5)}
    present |= {names.emergency(step, NOON) for step in range(5)}
    rolled = deleted_by(present, SaveRequest(9, NOON, regular=True), keep=5)
    assert rolled == {names.rolling(0)}
    saved = deleted_by(present, SaveRequest(9, NOON, emergency=True), keep=5)
    assert saved == {names.emergency(0, NOON)}


def test_save_without_role_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs a role"):
        plan_save([], SaveRequest(1, NOON), Retention(1, 1))


@pytest.mark.parametrize(
    ("name", "role", "number"),
    [
        ("latest.pt", Role.LATEST, None),
        ("latest_backup.pt", Role.LATEST_BACKUP, None),
        ("rolling_step_014000.pt", Role.ROLLING, 14_000),
        ("rolling_step_1234567.pt", Role.ROLLING, 1_234_567),
        ("rolling_last_backup.pt", Role.ROLLING_BACKUP, None),
        ("emergency_step_012345_20251106_143022.pt", Role.EMERGENCY, 12_345),
        ("best_model.pt", Role.BEST, None),
        ("best_model_backup.pt", Role.BEST_BACKUP, None),
        ("best_model_previous.pt", Role.BEST_PREVIOUS, None),
        ("epoch_00000.pt", Role.EPOCH, 0),
        ("epoch_123456.pt", Role.EPOCH, 123_456),
        *((name, None, None) for name in foreign),
        ("rolling_step_014000.pt\n", None, None),
        (".latest.pt.host-1-01234567.tmp", None, None),
        ("emergency_step_012345.pt", None, None),
        ("rolling_step_٠١٢٣٤٥.pt", None, None),
    ],
)
def test_names_and_their_roles(name: str, role: Role | None, number: int | None) -> None:
    assert (names.role_of(name), names.number_in(name)) == (role, number)


def test_names_are_parsed_as_they_are_built() -> None:
    when = datetime(2025, 11, 6, 14, 30, 22)
    assert names.emergency(12_345, when) == "emergency_step_012345_20251106_143022.pt"
    assert names.rolling(14_000) == "rolling_step_014000.pt"
    assert names.rolling(1_234_567) == "rolling_step_1234567.pt"
    assert names.epoch(3) == "epoch_00003.pt"


SOUND = {
    **{names.LATEST: 30, names.LATEST_BACKUP: 25, names.ROLLING_BACKUP: 30},
    **{names.BEST: 25, names.BEST_BACKUP: 25, names.BEST_PREVIOUS: 10},
    **{names.rolling(20): 20, names.rolling(30): 30, names.epoch(1): 25},
}


@pytest.mark.parametrize(
    ("name", "step"),
    [
        (names.LATEST, 25),
        (names.LATEST_BACKUP, 20),  # after a swap with an older one
        (names.ROLLING_BACKUP, 20),
        (names.BEST_BACKUP, 10),
        (names.BEST_PREVIOUS, 25),
    ],
)
def test_inconsistent_files_are_reported(name: str, step: int) -> None:
    assert names.inconsistencies(SOUND) == {}
    assert set(names.inconsistencies({**SOUND, name: step})) == {name}
