"""Tests that no two runs share a directory."""

import shlex
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from run_helpers import NOON, save, tree

from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.errors import InputError
from gpt2ckpt.runs.claim import claim, claim_base, claim_name, holds_run
from gpt2ckpt.runs.lock import RunLock, is_locked

# All processes stand at the barrier before any claims, and hold what they got until all have.
CLAIM_AT_ONCE = """
import multiprocessing, sys
from datetime import datetime
from pathlib import Path
from gpt2ckpt.runs.claim import claim

def one(barrier, queue):
    barrier.wait()
    got = claim(Path(sys.argv[1]), datetime(2025, 11, 6, 12), is_given=sys.argv[2] == "given")
    queue.put(got.directory)
    barrier.wait()

fork, count = multiprocessing.get_context("fork"), int(sys.argv[3])
barrier, queue = fork.Barrier(count, timeout=60), fork.Queue()
processes = [fork.Process(target=one, args=(barrier, queue)) for _ in range(count)]
for process in processes:
    process.start()
for process in processes:
    print(queue.get(timeout=60))
for process in processes:
    process.join()
"""


def claimed_at_once(wanted: Path, how: str, count: int) -> list[Path]:
    """Return the directories that `count` processes claim at the same time."""
    command = [sys.executable, "-c", CLAIM_AT_ONCE, str(wanted), how, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [Path(line) for line in done.stdout.splitlines()]


def test_twenty_starts_in_one_second_get_twenty_directories(tmp_path: Path) -> None:
    """With a default name, and with one name that is given to all."""
    stamped = tmp_path / "outputs" / "gpt2_run_20251106_120000"
    got = claimed_at_once(stamped, "ours", 20)
    expected = {f"gpt2_run_20251106_{NOON + timedelta(seconds=i):%H%M%S}" for i in range(20)}
    assert {path.name for path in got} == expected
    assert {path.name for path in stamped.parent.iterdir()} == expected


def test_one_of_six_starts_gets_the_given_directory(
    tmp_path: Path,
) -> None:
    got = claimed_at_once(tmp_path / "mine", "given", 6)
    assert len(set(got)) == 6
    assert tmp_path / "mine" in got
    others = {path.name for path in got} - {"mine"}
    assert all(name.startswith("mine_run_20251106_1200") for name in others)


@pytest.mark.parametrize("name", ["latest.pt", "rolling_step_000001.pt", "of_another_tool.pt"])
def test_directory_with_checkpoints_is_left_untouched(tmp_path: Path, name: str) -> None:
    wanted = tmp_path / "mine"
    save(wanted, 3)
    for path in (wanted / "checkpoints").iterdir():
        if path.name != name:
            path.unlink()
    (wanted / "checkpoints" / name).touch()  # an unknown one is protected as well
    (wanted / ".hydra").mkdir()
    (wanted / ".hydra" / "config.yaml").write_text("name: old\n")
    (wanted / "train.log").write_text("old\n")
    before = tree(wanted)
    got = claim(wanted, NOON, is_given=True)
    assert tree(wanted) == before
    assert got.directory == tmp_path / "mine_run_20251106_120000"
    assert got.notice.startswith("CHECKPOINT DIRECTORY PROTECTION")
    assert f"+resume=latest hydra.run.dir={wanted}" in got.notice
    assert str(got.directory) in got.notice
    got.lock.release()


def test_archived_checkpoints_protect_a_directory(tmp_path: Path) -> None:
    archive = tmp_path / "mine" / "checkpoints" / "abandoned_20251106_120000"
    archive.mkdir(parents=True)
    (archive / "rolling_step_000009.pt").write_bytes(b"x")
    assert holds_run(tmp_path / "mine")


def test_locked_directory_without_checkpoints_is_not_shared(tmp_path: Path) -> None:
    first = claim(tmp_path / "mine", NOON, is_given=True)
    assert first.directory == tmp_path / "mine"
    assert not first.notice
    second = claim(tmp_path / "mine", NOON, is_given=True)
    assert second.directory == tmp_path / "mine_run_20251106_120000"
    first.lock.release()
    second.lock.release()


def test_directory_of_a_run_that_never_saved_is_reused(
    tmp_path: Path,
) -> None:
    """A job script with hydra.run.dir=DIR +resume=auto finds its own run only then."""
    claim(tmp_path / "mine", NOON, is_given=True).lock.release()
    again = claim(tmp_path / "mine", NOON, is_given=True)
    assert again.directory == tmp_path / "mine"
    again.lock.release()


def test_claimed_directory_is_locked(tmp_path: Path) -> None:
    for is_given in (True, False):
        got = claim(tmp_path / f"a_{is_given}", NOON, is_given=is_given)
        assert is_locked(got.directory)
        got.lock.release()


def test_time_stamp_is_the_next_free_second(tmp_path: Path) -> None:
    late = datetime(2025, 12, 31, 23, 59, 59)
    names = [claim_name(tmp_path / "gpt2_run", late).name for _ in range(2)]
    assert names == ["gpt2_run_20251231_235959", "gpt2_run_20260101_000000"]


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("gpt2_run_20251106_143022", "gpt2_run"),
        ("gpt2_sweep_20251106_143022", "gpt2_sweep"),
        ("a_run_20251106_143022_run_20251107_000000", "a_run_20251106_143022_run"),
        ("gpt2_20251106_143022", "gpt2_20251106_143022"),
        ("mine", "mine"),
    ],
)
def test_claim_base_removes_the_time_stamp(name: str, base: str) -> None:
    assert claim_base(Path("outputs") / name) == Path("outputs") / base


@pytest.mark.parametrize("is_given", [True, False])
def test_error_names_a_directory_that_cannot_be_made(tmp_path: Path, is_given: bool) -> None:
    (tmp_path / "file").write_text("in the way")
    wanted = tmp_path / "file" / "gpt2_run_20251106_120000"
    with pytest.raises(InputError) as raised:
        claim(wanted, NOON, is_given=is_given)
    assert str(wanted) in str(raised.value)
    assert "hydra.run.dir=DIR" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_file_with_the_wanted_name_is_left_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("a file")
    with pytest.raises(InputError, match="cannot be created"):
        claim(tmp_path / "mine", NOON, is_given=True)
    assert (tmp_path / "mine").read_text() == "a file"


def test_protection_notice_quotes_the_directory_for_the_shell(tmp_path: Path) -> None:
    wanted = tmp_path / "lr=1, it's mine"
    save(wanted, 3)
    got = claim(wanted, NOON, is_given=True)
    words = shlex.split(got.notice.splitlines()[-1].partition(": ")[2])
    composed = compose_config("train", words)
    assert composed.values["resume"] == "latest"
    assert composed.hydra.run.dir == str(wanted)
    got.lock.release()


def test_lock_of_a_claim_is_released_once(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.release()
    lock.release()
    assert not is_locked(tmp_path)
