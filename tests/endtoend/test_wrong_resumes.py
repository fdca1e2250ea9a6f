"""Wrong resumes are refused with one message and the right exit code, and change nothing."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import Done, run, tree

from gpt2ckpt.checkpoint.format import encode
from gpt2ckpt.checkpoint.reading import load

WRONG = {
    # overrides after the command: exit code, and what the sentence must say
    "+resume=lates hydra.run.dir=run": (2, "Did you mean latest?"),
    "+resume=best_prevous hydra.run.dir=run": (2, "Did you mean best_previous?"),
    "+resum=latest hydra.run.dir=run": (2, "Did you mean resume?"),
    "--resume latest": (2, "--resume"),
    "+resume= hydra.run.dir=run": (2, "resume is empty"),
    "+resume=run/checkpoints/gone.pt": (1, "there is no such file or directory"),
    "+resume=lr=1e-3/latest.pt": (1, "lr=1e-3/latest.pt: there is no such file or directory"),
    "+resume=my\tlatest.pt": (1, "my latest.pt: there is no such file or directory"),
    "+resume=gone/run": (1, "gone/run: there is no such file or directory"),
    "+resume=other.pt": (1, "other.pt cannot be used"),
    "+resume=notes.txt": (1, "notes.txt cannot be used"),
    "+resume=foreign": (1, "there is no checkpoint in foreign"),
    "+resume=latest hydra.run.dir=gone": (1, "there is no checkpoint in gone"),
    "+resume=latest hydra.run.dir=empty": (1, "there is no checkpoint in empty"),
    "+resume=latest": (1, "there is no checkpoint in outputs"),
    "+resume=emergency hydra.run.dir=run": (1, "there is no emergency checkpoint in run"),
    "+resume=corrupt": (1, "no valid checkpoint is left in corrupt"),
    "+resume=auto hydra.run.dir=corrupt": (1, "no valid checkpoint is left in corrupt"),
    "+resume=auto hydra.run.dir=foreign": (1, "there is no checkpoint in foreign"),
    "+resume=latest hydra.run.dir=run model.n_layer=3": (2, "model.n_layer: 2 → 3"),
    "+resume=latest hydra.run.dir=run model.vocab_size=65": (2, "model.vocab_size: 64 → 65"),
    "+resume=latest hydra.run.dir=run optimizer=muon": (2, "optimizer.kind: adamw → muon"),
    "+resume=latest hydra.run.dir=run optimizer.lrr=1": (2, "Did you mean optimizer.lr?"),
    "+resume=latest hydra.run.dir=run data.train=gone.bin": (1, "gone.bin"),
    "+resume=latest hydra.run.dir=run trainer.max_steps=ten": (2, "trainer.max_steps=ten"),
    "+fork=true hydra.run.dir=run": (2, "fork=true needs a checkpoint to fork from"),
    "+resume=latest hydra.run.dir=fixed trainer.max_steps=130": (1, "fixed cannot be written"),
}


def shorten_rng(state: dict[str, Any]) -> None:
    state["rng"]["torch"] = state["rng"]["torch"][:8].clone()


def delete_moments(state: dict[str, Any]) -> None:
    del state["optimizer"]["state"]["transformer.wpe.weight"]["exp_avg"]


def spoil_tally(state: dict[str, Any]) -> None:
    state["data"]["bad_numbers"] = {"rollbacks": "many"}


SPOILED = {
    # change to the state of an older step: what the sentence must say
    shorten_rng: "RNG state",
    delete_moments: "instead of exp_avg, exp_avg_sq, step",
    spoil_tally: "data.bad_numbers.rollbacks is missing or unusable",
}


@pytest.fixture(scope="module")
def refused(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> "dict[str, Done]":
    cwd = tmp_path_factory.mktemp("wrong")
    for name in ("run", "corrupt", "fixed"):
        shutil.copytree(reference.directory, cwd / name, copy_function=shutil.copy2)
    for path in (cwd / "corrupt" / "checkpoints").iterdir():
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-100])
    (cwd / "foreign" / "checkpoints").mkdir(parents=True)
    (cwd / "foreign" / "checkpoints" / "model.pt").write_text("of another project")
    (cwd / "other.pt").write_text("of another project")
    (cwd / "notes.txt").write_text("buy milk")
    (cwd / "empty").mkdir()
    fixed = shutil.which("chattr") is not None and fix(cwd / "fixed", True)
    before = tree(cwd)
    overrides = [overrides for overrides in WRONG if fixed or "=fixed" not in overrides]
    try:
        done = run_lines(overrides, cwd)
    finally:
        if fixed:
            fix(cwd / "fixed", False)
    assert tree(cwd) == before
    return done


def run_lines(lines: list[str], cwd: Path) -> dict[str, Done]:
    """Run the train command once with each line of overrides."""
    overrides = {line: [word.replace("\t", " ") for word in line.split(" ")] for line in lines}
    return {line: run("train", overrides[line], cwd) for line in lines}


def fix(directory: Path, fixed: bool) -> bool:
    """Make `directory` immutable even for root, and return whether that is possible."""
    command = ["chattr", "+i" if fixed else "-i", str(directory)]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("overrides", WRONG)
def test_wrong_resume_is_refused_and_changes_nothing(
    refused: "dict[str, Done]", overrides: str
) -> None:
    if overrides not in refused:
        pytest.skip("needs root, chattr and a file system that knows immutable directories")
    code, expected = WRONG[overrides]
    done = refused[overrides]
    assert expected in done.message
    assert (done.code, done.out) == (code, "")


def test_unrestorable_state_is_refused_before_later_checkpoints_are_archived(
    reference: Any, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(reference.directory, copy, copy_function=shutil.copy2)
    older = copy / "checkpoints" / "rolling_step_000020.pt"
    lines = {}
    for change in SPOILED:
        state = load(older)
        change(state)
        path = older.with_name(f"{change.__name__}.pt")
        path.write_bytes(b"".join(map(bytes, encode(state).buffers)))
        lines[f"+resume={path} trainer.max_steps=30"] = change
    before = tree(copy)
    ended = run_lines(list(lines), tmp_path)
    assert tree(copy) == before
    for line, done in ended.items():
        change = lines[line]
        assert SPOILED[change] in done.message and f"{change.__name__}.pt" in done.message
        assert (done.code, done.out) == (1, "")
