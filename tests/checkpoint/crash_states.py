"""Checks the crash states of random histories of a run that has files of every role.

`run_crash_states(count, seed, scratch)` checks `count` different crash states; a failure names
its seed, history and system call. From the command line:

    pytest tests/checkpoint/test_power_loss.py --crash-states 20000
"""

import argparse
import contextlib
import io
import logging
import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import NOON, flip_random_byte, names_in, small_state
from power_loss import Content, Disk, File, Folder, fingerprint, rebuild, recorded

from gpt2ckpt.checkpoint import emergency_reserve, names
from gpt2ckpt.checkpoint.manager import CheckpointManager
from gpt2ckpt.checkpoint.names import Role
from gpt2ckpt.checkpoint.newest_valid import find_valid
from gpt2ckpt.checkpoint.reading import check, step_of
from gpt2ckpt.checkpoint.repair import diagnose, repair
from gpt2ckpt.checkpoint.retention import Retention, SaveRequest
from gpt2ckpt.checkpoint.scrub import Scrub
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.tools import prune

KEEP = Retention(3, 2)
ACTIONS = ("regular",) * 4 + (
    *("best", "regular best", "regular epoch", "emergency", "emergency", "regular best epoch"),
    *("back", "resume", "prune", "repair", "scrub"),
)
HISTORY = 14  # actions


@dataclass
class Promise:
    """What must be found in every crash state at the present call."""

    newest: int | None = None  # the step that `latest` must reach
    best: set[int] = field(default_factory=set)  # the steps that `best` may be; empty: no promise
    steps: set[int] = field(default_factory=set)  # that some file holds
    pools: set[str] = field(default_factory=set)  # names that only a newer state may push out
    coming: int | None = None  # the step that is being saved
    in_two_copies: bool = False  # the newest state: one damaged file does not take it
    damaged: set[bytes] = field(default_factory=set)  # content that the history damaged


@dataclass
class Tally:
    states: int = 0
    histories: int = 0
    calls: int = 0
    actions: Counter[str] = field(default_factory=Counter)


def run_crash_states(
    count: int, seed: int, scratch: Path, actions: tuple[str, ...] = ACTIONS, chance: float = 0.3
) -> Tally:
    """Check `count` different crash states of random histories of `actions`.

    Raises AssertionError that names the history's seed.
    """
    tally = Tally()
    logging.getLogger("gpt2ckpt").setLevel(logging.CRITICAL)
    try:
        while tally.states < count:
            history = History(
                *(scratch / "run", seed + tally.histories, actions, chance, count, tally)
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(emergency_reserve, "MARGIN", 1 << 12)
                history.run(patch)
            tally.histories += 1
    finally:
        logging.getLogger("gpt2ckpt").setLevel(logging.NOTSET)
    return tally


@dataclass
class History:
    """One run directory from its first save on."""

    root: Path
    seed: int
    actions: tuple[str, ...]
    chance: float  # that a crash comes at a call
    limit: int
    tally: Tally

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.promise = Promise()
        self.action = "start"
        self.step = 0
        self.when = NOON
        self.seen: set[int] = set()

    def run(self, patch: pytest.MonkeyPatch) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        self.disk = Disk(self.root, self.after_call)
        with recorded(self.disk, patch):
            self.start(None)
            for number in range(HISTORY):
                self.action = self.dice.choice(self.actions) if number else "regular"
                self.act(self.action)
                self.after_action()
                if self.tally.states >= self.limit:
                    break
            self.manager.close()

    # ------------------------------------------------ what is done

    @property
    def folder(self) -> Path:
        return self.root / "checkpoints"

    def start(self, resumed_from: Path | None) -> None:
        self.manager = CheckpointManager(self.folder, KEEP, resumed_from)
        self.manager.reserve(1 << 12)

    def act(self, action: str) -> None:
        self.tally.actions[action] += 1
        self.when += timedelta(seconds=self.dice.choice((-3600, 0, 1, 60)))  # no clock is trusted
        self.promise.in_two_copies = False
        match action:
            case "back":
                self.go_back()
            case "resume":
                self.manager.close()
                self.start(find_valid(self.folder, Role.LATEST).path)
            case "prune":
                self.prune()
            case "repair" | "scrub":
                self.damage_and_mend(action)
            case _:
                self.save(action.split())

    def save(self, reasons: list[str]) -> None:
        self.step += self.dice.randrange(1, 4)
        request = SaveRequest(
            *(self.step, self.when),
            regular="regular" in reasons,
            emergency="emergency" in reasons,
            best="best" in reasons,
            epoch_ended=self.step if "epoch" in reasons else None,
        )
        self.promise.coming = self.step
        if request.best and self.promise.best:
            self.promise.best.add(self.step)
        saved = self.manager.save(small_state(self.step), request)
        assert saved is not None, f"seed {self.seed}: a save failed without a reason"
        self.promise.newest, self.promise.coming = self.step, None
        if request.best:
            self.promise.best = {self.step}
        self.promise.in_two_copies = request.regular
        self.promise.steps = steps_in(self.folder)
        self.promise.pools = {
            path.name
            for path in Store(self.folder).files()
            if names.number_in(path.name) is not None
        }

    def go_back(self) -> None:
        earlier = [path for path in Store(self.folder).files() if step_in(path) is not None]
        oldest = min(earlier, key=lambda path: step_in(path) or 0)
        chosen = self.dice.choice([oldest, *earlier])
        step = step_in(chosen)
        assert step is not None
        self.manager.close()
        self.promise.newest, self.promise.best, self.promise.pools = step, set(), set()
        Store(self.folder).roll_back_to(chosen, step, self.when)
        self.start(chosen)
        self.step = step

    def prune(self) -> None:
        self.manager.close()
        self.promise.steps, self.promise.best, self.promise.pools = set(), set(), set()
        limits = argparse.Namespace(
            *(), dir=self.root, keep_rolling=1, keep_emergency=self.dice.randrange(2)
        )
        limits.keep_epochs, limits.keep_runs = 1, None
        limits.abandoned, limits.corrupt, limits.yes = True, True, True
        with contextlib.redirect_stdout(io.StringIO()):
            assert prune.run(limits) == 0
        self.start(None)

    def damage_and_mend(self, action: str) -> None:
        """Flip a bit of a file of which there is another copy, as a disk does."""
        files = Store(self.folder).files()
        by_step: dict[int, set[int]] = {}
        for path in files:
            by_step.setdefault(step_in(path) or 0, set()).add(path.stat().st_ino)
        twice = [path for path in files if len(by_step[step_in(path) or 0]) > 1]
        if not twice:
            return
        damaged = self.dice.choice(twice)
        flip_random_byte(damaged, self.dice.randrange(1 << 30))
        node = self.disk.node(damaged)
        assert isinstance(node, File)
        node.synced = damaged.read_bytes()
        self.promise.damaged.add(node.synced)
        if action == "repair":
            repair(self.folder, diagnose(self.folder), self.when)
        else:
            scrub = Scrub(self.folder, 1e6)
            scrub.request()
            scrub.run(lambda: False)

    # ------------------------------------------------ what must hold

    def after_call(self, disk: Disk, call: str) -> None:
        self.tally.calls += 1
        if self.dice.random() < self.chance:
            self.examine(disk.crash(self.dice), call)

    def after_action(self) -> None:
        """What was acknowledged is on disk, whatever a crash takes."""
        for file in files_below(self.disk.top):
            assert not file.since or self.action in ("prune", "repair", "scrub"), self.where("end")
        self.examine(self.disk.crash(self.dice), "end")
        content = self.disk.crash(self.dice).get("checkpoints", {})
        if not self.promise.in_two_copies or not isinstance(content, dict):
            return
        for number in {entry[0] for entry in content.values() if isinstance(entry, tuple)}:
            self.examine({"checkpoints": without(content, number)}, "one damaged file")

    def examine(self, content: Content, call: str) -> None:
        """Rebuild a crash state, and start in it as a resume does."""
        mark = fingerprint(content)
        if mark in self.seen or self.tally.states >= self.limit:
            return
        self.seen.add(mark)
        self.tally.states += 1
        root = self.root.with_name("crashed")
        shutil.rmtree(root, ignore_errors=True)
        rebuild(content, root)
        try:
            self.check(root, call)
        except (AssertionError, CheckpointError, OSError) as error:
            left = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
            raise AssertionError(f"{self.where(call)}: {error}; it left {left}") from error

    def where(self, call: str) -> str:
        return f"seed {self.seed}, action {self.action!r}, call {self.disk.calls} ({call})"

    def check(self, root: Path, call: str) -> None:
        promise, folder = self.promise, root / "checkpoints"
        store = Store(folder)
        if promise.newest is None and not store.files():
            return
        is_damaged = call == "one damaged file"
        for path in () if is_damaged else store.files():
            assert is_valid(path) or path.read_bytes() in promise.damaged, f"{path.name} is torn"
        found = find_valid(folder, Role.LATEST)
        step = found.state.step
        assert step >= (promise.newest or 0), f"latest is {step}, not {promise.newest}"
        assert torch.equal(found.state.model["wte"], small_state(step)["model"]["wte"])
        lost = {*(promise.steps - steps_in(folder)), *(promise.pools - names_in(folder))}
        if lost and not is_damaged:
            assert promise.coming in steps_in(folder), f"{lost} went too early"
        if promise.best and not is_damaged:
            best = find_valid(folder, Role.BEST).state.step
            assert best in promise.best, f"best is {best}, not one of {promise.best}"
        self.go_on(folder, step)

    def go_on(self, folder: Path, step: int) -> None:
        """The next start cleans up, and its first save succeeds."""
        manager = CheckpointManager(folder, KEEP, None)
        manager.wait()
        for path in folder.rglob("*"):
            is_ours = names.role_of(path.name) is not None or path.is_dir()
            assert is_ours, f"{path.name} was left over"
        if self.dice.randrange(4) == 0:
            saved = manager.save(
                small_state(step + 1), SaveRequest(step + 1, self.when, regular=True)
            )
            assert saved is not None and is_valid(saved.path)
            assert find_valid(folder, Role.LATEST).state.step == step + 1
        manager.close()


def files_below(folder: Folder) -> list[File]:
    found = []
    for name, node in folder.live.items():
        if isinstance(node, Folder):
            found += files_below(node)
        elif names.role_of(name):
            found.append(node)
    return found


def without(content: Content, number: int) -> Content:
    """The content with one bit of one file flipped."""

    def flipped(data: bytes) -> bytes:
        return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:] if len(data) > 100 else b""

    return {
        name: (number, flipped(entry[1]))
        if isinstance(entry, tuple) and entry[0] == number
        else entry
        for name, entry in content.items()
    }


def is_valid(path: Path) -> bool:
    try:
        check(path)
    except CheckpointError:
        return False
    return True


def step_in(path: Path) -> int | None:
    """The step of a valid file."""
    try:
        check(path)
        return step_of(path)
    except CheckpointError:
        return None


def steps_in(folder: Path) -> set[int]:
    """The steps of all valid files, those that were archived too."""
    paths = [path for path in folder.rglob("*.pt") if names.role_of(path.name)]
    return {step for path in paths if (step := step_in(path)) is not None}
