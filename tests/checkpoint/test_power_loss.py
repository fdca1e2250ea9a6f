"""A power loss at any system call of any history loses no reported save."""

import inspect
import random
import types
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from crash_states import ACTIONS, run_crash_states

from gpt2ckpt.checkpoint import store
from gpt2ckpt.files import durable

SEED = random.randrange(1 << 30)  # named by what fails


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: what is synced to it is synced at once."""
    shared_memory = Path("/dev/shm")
    with TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder:
        yield Path(folder)


def test_every_crash_state_holds_what_was_saved(
    scratch: Path, request: pytest.FixtureRequest
) -> None:
    """`--crash-states N` for more of them."""
    count = request.config.getoption("--crash-states")
    tally = run_crash_states(count, SEED, scratch)
    assert tally.states == count
    print(f"\n{tally}")


BREAKS = {
    "the file is not synced": (durable, "publish", "            os.fsync(descriptor)\n", ""),
    "the folder is not synced": (durable, "sync_directory", "os.fsync(descriptor)", "pass"),
    "renamed before it is synced": (
        *(durable, "publish", "            os.fsync(descriptor)\n"),
        "            temporary.replace(target)\n            os.fsync(descriptor)\n"
        "            os.link(target, temporary)\n",
    ),
    "deleted before the new state is durable": (
        *(store, "Store._apply", "        for operation in operations:\n"),
        "        durable.delete([self.folder / op.name for op in operations"
        " if isinstance(op, Delete)])\n        for operation in operations:\n",
    ),
    "the second copy is a link": (
        *(store, "plan_save", "operations.append(Publish(names.ROLLING_BACKUP))"),
        "operations.append(Link(own[0], names.ROLLING_BACKUP))",
    ),
    "the file is written in place": (
        *(durable, "publish", "    temporary = spare or temporary_name(target)\n"),
        "    target.unlink(missing_ok=True)\n    temporary = target\n",
    ),
    "going back deletes before it has linked": (
        *(store, "Store.roll_back_to", "        for path in later:\n"),
        "        durable.delete(later[1:])\n        for path in later[:1]:\n",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_code_is_caught(name: str, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulator sees each of these when the code is broken on purpose."""
    module, function, old, new = BREAKS[name]
    break_code(monkeypatch, module, function, old, new)
    actions = ("regular", "regular", "back") if "going back" in name else ACTIONS
    with pytest.raises(AssertionError, match="seed"):
        run_crash_states(500, 3, scratch, actions)


def break_code(
    monkeypatch: pytest.MonkeyPatch, module: types.ModuleType, name: str, old: str, new: str
) -> None:
    """Replace `old` by `new` in a function or method of a module while the test runs."""
    owner, _, function = name.rpartition(".")
    place = getattr(module, owner) if owner else module
    code = getattr(place, function)
    source = inspect.getsource(code)
    plain = inspect.cleandoc(f"\n{source}") if owner else source
    assert plain.count(inspect.cleandoc(old)) >= 1, "the code to break is no longer there"
    lines = source.replace(old, new, 1).splitlines(keepends=True)
    indent = len(lines[0]) - len(lines[0].lstrip())
    scope: dict[str, object] = {}
    exec("".join(line[indent:] or "\n" for line in lines), code.__globals__, scope)
    monkeypatch.setattr(place, function, scope[function])
