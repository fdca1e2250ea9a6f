"""Damages files of a run in all roles: `verify` detects all damage, and a resume recovers.

An episode damages one to three files of the run: a flipped byte, a zeroed page, a truncation, or
two swapped files. Then `verify` must report every file with changed content, and the resume
selectors must find a state that was saved, bitwise, and the intended one if its file is intact.
Then the damage is undone.
"""

import contextlib
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2ckpt.checkpoint import names
from gpt2ckpt.checkpoint.reading import load
from gpt2ckpt.checkpoint.store import Store
from gpt2ckpt.errors import CheckpointError
from gpt2ckpt.runs import resume
from gpt2ckpt.tools.verify import Checker
from tests.torture import tiny
from tests.torture.tally import Tally

PAGE = 4096
KINDS = ("flip", "page", "truncation", "swap of names", "swap of content")
SELECTORS = ("latest", "best", "best_previous", "latest_backup")
ATTEMPTS = 20  # to train the run with an emergency save between two others
COMMANDS = 200  # of that many episodes one also resumes by the command


@dataclass
class Pristine:
    """A snapshot of a run: content and names of each file, and the states by step."""

    run: Path
    content: dict[str, bytes] = field(default_factory=dict)
    groups: list[list[str]] = field(default_factory=list)
    states: dict[int, dict[str, Any]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.run / "checkpoints"

    def read(self) -> None:
        inodes: dict[int, list[str]] = {}
        for path in Store(self.folder).files():
            self.content[path.name] = path.read_bytes()
            inodes.setdefault(path.stat().st_ino, []).append(path.name)
            state = load(path)
            self.steps[path.name] = state["step"]
            self.states[state["step"]] = {key: state[key] for key in tiny.COMPARED}
        self.groups = list(inodes.values())

    def restore(self) -> None:
        """Restore every file and hard link."""
        for path in self.folder.iterdir():
            path.unlink()
        for first, *others in self.groups:
            (self.folder / first).write_bytes(self.content[first])
            for other in others:
                os.link(self.folder / first, self.folder / other)

    def changed(self) -> set[str]:
        return {
            name for name, was in self.content.items() if (self.folder / name).read_bytes() != was
        }


def torture(folder: Path, episodes: int, seed: int) -> Tally:
    """Apply `count` damages and undo each."""
    tally, begun = Tally("damaged files"), time.monotonic()
    pristine = make_run(folder)
    for number in range(episodes):
        dice = random.Random(seed + number)
        try:
            kinds = _damage(pristine, dice)
            _judge(pristine, kinds, tally, dice)
            if dice.randrange(COMMANDS) == 0:
                _resume_for_real(pristine, dice, tally)
        except Exception as error:
            tally.fail(seed + number, f"{type(error).__name__}: {error}")
        tally.done += 1
        pristine.restore()
    tally.seconds = time.monotonic() - begun
    return tally


def make_run(folder: Path) -> Pristine:
    """Train a run with a file of every role, with an emergency save by SIGUSR1.

    On a busy machine the signal may arrive in a step that is saved anyway. Two files then hold the
    same state, and nothing could notice a swap of them: the run is trained again.
    """
    tiny.make_data(folder)
    for _ in range(ATTEMPTS):
        pristine = _train_once(folder)
        roles = {name: names.role_of(name) for name in pristine.content}
        if missing := set(names.Role) - set(roles.values()):
            raise RuntimeError(f"the run has no file of {missing}")
        steps = [
            pristine.steps[name]
            for name, role in roles.items()
            if role in (names.Role.ROLLING, names.Role.EMERGENCY)
        ]
        if len(set(steps)) == len(steps):
            return pristine
        shutil.rmtree(pristine.run)
    raise RuntimeError(f"SIGUSR1 always arrived in a step that is saved, {ATTEMPTS} times")


def _train_once(folder: Path) -> Pristine:
    run = folder / "run"
    overrides = [*tiny.WORDS, "trainer.eval_every=4", "optimizer.lr=3e-3"]
    child = tiny.fork(overrides, run, folder / "run.out")
    while child.ended() is None and tiny.steps_done(run) < tiny.STEPS - 3:
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGUSR1)
    if code := child.wait():
        raise RuntimeError(f"the training ended with {code}:\n{child.text()}")
    pristine = Pristine(run)
    pristine.read()
    return pristine


def _damage(pristine: Pristine, dice: random.Random) -> list[str]:
    kinds = dice.choices(KINDS, k=dice.choice((1, 1, 1, 2, 3)))
    for kind in kinds:
        first, second = (
            pristine.folder / name for name in dice.sample(sorted(pristine.content), 2)
        )
        if kind == "swap of names":
            _swap_names(first, second)
        elif kind == "swap of content":
            one, other = first.read_bytes(), second.read_bytes()
            first.write_bytes(other)
            if not first.samefile(second):
                second.write_bytes(one)
        else:
            data = bytearray(first.read_bytes() or b"\0")
            position = dice.randrange(len(data))
            if kind == "flip":
                data[position] ^= dice.randrange(1, 256)
            elif kind == "page":
                start = position - position % PAGE
                data[start : start + PAGE] = bytes(len(data[start : start + PAGE]))
            else:
                del data[position:]
            first.write_bytes(data)
    return kinds


def _swap_names(first: Path, second: Path) -> None:
    temporary = first.with_name("temporary")
    first.rename(temporary)
    second.rename(first)
    temporary.rename(second)


def _judge(pristine: Pristine, kinds: list[str], tally: Tally, dice: random.Random) -> None:
    """Raise AssertionError for damage that is not detected or not recovered from."""
    changed = pristine.changed()
    kind = kinds[0] if len(kinds) == 1 else "several at once"
    if not changed:
        tally.counts[f"{kind}: nothing changed"] += 1
        return
    checker = Checker()
    checked = [checker(path) for path in sorted(pristine.folder.glob("*.pt"))]
    flagged = {c.path.name for c in checked if not c.valid}
    noted = {c.path.name for c in checked if c.note}
    broken = {name for name in changed if not _is_some_state(pristine, name)}
    assert broken <= flagged, f"{kinds}: {sorted(broken - flagged)} not noticed"
    assert flagged or noted, f"{kinds}: {sorted(changed)} not noticed"
    tally.counts[f"{kind}: {'noticed' if flagged else 'noted as odd'}"] += 1
    good = set(pristine.content) - broken
    for selector in SELECTORS if dice.randrange(4) == 0 else [dice.choice(SELECTORS)]:
        _recover(pristine, selector, good, changed)
        tally.counts[f"recovered by {selector}"] += 1


def _is_some_state(pristine: Pristine, name: str) -> bool:
    return (pristine.folder / name).read_bytes() in pristine.content.values()


def _recover(pristine: Pristine, selector: str, good: set[str], changed: set[str]) -> None:
    """Assert that the selector finds a saved state bitwise, the intended one if it is intact."""
    try:
        found = resume.read(resume.Place(pristine.run, resume.SELECTORS[selector]))
    except CheckpointError as error:
        assert not good, f"{selector}: {error}, and {sorted(good)} are valid"
        return
    step = found.state.step
    assert step in pristine.states, f"{selector} gave step {step}, which was never saved"
    stored = found.state.to_dict()
    where = tiny.differing({k: stored[k] for k in tiny.COMPARED}, pristine.states[step])
    assert where is None, f"{selector} gave step {step} with another {where}"
    own = next(n for n in pristine.content if names.role_of(n) is resume.SELECTORS[selector])
    if own not in changed:
        assert step == pristine.steps[own], f"{selector} gave step {step} beside an intact {own}"


def _resume_for_real(pristine: Pristine, dice: random.Random, tally: Tally) -> None:
    """Do the same by the command in a copy, which trains to the end."""
    copy = pristine.run.with_name("copy")
    shutil.copytree(pristine.run, copy)
    selector = dice.choice(SELECTORS)
    any_left = any(_is_some_state(pristine, name) for name in pristine.content)
    overrides = [f"trainer.max_steps={tiny.STEPS + 6}"]
    child = tiny.fork_main(overrides, copy, copy.with_suffix(".out"), selector)
    code = child.wait()
    assert (code == 0) == any_left, f"resume={selector} ended with {code}:\n{child.text()[-1500:]}"
    assert not any_left or tiny.newest_valid(copy) == tiny.STEPS + 6, child.text()[-1500:]
    tally.counts["resumed by the command"] += 1
    shutil.rmtree(copy)
