"""Resume, fork and protection of a finished run on the command line."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import Done, events, latest, opened, same_bits, side_by_side, succeed, tree


def flip(path: Path) -> None:
    """Flip one bit in a tensor in place, which also damages hard links."""
    content = bytearray(path.read_bytes())
    content[int(0.6 * len(content))] ^= 16
    with path.open("r+b") as file:
        file.write(content)


@pytest.fixture(scope="module")
def folder(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the finished run for every command."""
    folder = tmp_path_factory.mktemp("going_on")
    for name in ("finished", "protected", "forked_from", "extended", "flipped"):
        shutil.copytree(reference.directory, folder / name, copy_function=shutil.copy2)
    flip(folder / "flipped" / "checkpoints" / "latest.pt")
    return folder


@pytest.fixture(scope="module")
def before(folder: Path) -> dict[str, Any]:
    return {path.name: tree(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def done(reference: Any, folder: Path, before: dict[str, Any]) -> dict[str, Done]:
    """Run each command in its own directory, so that they can run in parallel."""

    def resume(name: str, *overrides: str) -> tuple[str, list[str]]:
        return "train", ["+resume=latest", f"hydra.run.dir={name}", *overrides]

    source = folder / "forked_from" / "checkpoints" / "rolling_step_000100.pt"
    longer = "trainer.max_steps=123"
    return side_by_side(
        folder,
        {
            "finished": resume("finished"),
            "protected": ("train", [*reference.overrides, longer, "hydra.run.dir=protected"]),
            "fork": ("train", [f"+resume={source}", "+fork=true", "trainer.max_steps=102"]),
            "extended": resume("extended", longer, reference.overrides[2]),
            "flipped": resume("flipped", longer),
        },
    )


def test_resume_of_a_finished_run_names_the_key_to_raise(
    done: dict[str, Done], folder: Path, before: dict[str, Any]
) -> None:
    result = succeed(done["finished"])
    assert "finished is finished: step 120 of 120" in result.out
    assert "raise trainer.max_steps (now 120)" in result.out
    assert tree(folder / "finished") == before["finished"]


def test_new_run_in_an_existing_run_directory_gets_another_directory(
    done: dict[str, Done], folder: Path, before: dict[str, Any]
) -> None:
    result = succeed(done["protected"])
    assert "CHECKPOINT DIRECTORY PROTECTION" in result.out
    assert "+resume=latest hydra.run.dir=protected" in result.out
    assert tree(folder / "protected") == before["protected"]
    [made] = folder.glob("protected_run_*")
    assert latest(made)["step"] == 123
    assert {"checkpoints", "metrics.jsonl", "train.log", ".hydra"} <= {
        p.name for p in made.iterdir()
    }


def test_fork_is_a_new_run_that_records_its_parent(
    done: dict[str, Done], folder: Path, before: dict[str, Any]
) -> None:
    result = succeed(done["fork"])
    assert "forking from " in result.out
    assert tree(folder / "forked_from") == before["forked_from"]
    [made] = (folder / "outputs").glob("reference_run_*")  # the name comes with the config
    state, parent = latest(made), latest(folder / "forked_from")
    assert state["run"]["id"] != parent["run"]["id"]
    assert (state["run"]["parent"]["id"], state["run"]["parent"]["step"]) == (
        *(parent["run"]["id"],),
        100,
    )
    assert [step for step, _ in events(made)] == [101, 102]


def test_resume_applies_and_prints_only_changed_keys(done: dict[str, Done], folder: Path) -> None:
    """The command repeats data.val=FILE, a key of data=tokens, without data=tokens."""
    result = succeed(done["extended"])
    assert "resuming from extended/checkpoints/latest.pt, step 120" in result.out
    changes = [line for line in result.out.splitlines() if " → " in line]
    assert changes == ["trainer.max_steps: 120 → 123  (harmless)"]
    assert [step for step, _ in events(folder / "extended")] == list(range(1, 124))
    state = latest(folder / "extended")
    assert state["config"]["trainer"]["max_steps"] == 123
    assert state["overrides"].index("trainer.max_steps=123") > state["overrides"].index(
        "trainer.max_steps=120"
    )


def test_every_launch_writes_its_hydra_record(
    done: dict[str, Done], folder: Path, before: dict[str, Any]
) -> None:
    hydra = folder / "extended" / ".hydra"
    old = {name: entry for name, entry in before["extended"].items() if name.startswith(".hydra/")}
    now = tree(folder / "extended")
    assert old and all(now[name] == entry for name, entry in old.items())
    assert yaml.safe_load((hydra / "config.yaml").read_text())["trainer"]["max_steps"] == 120
    record = yaml.safe_load((hydra / "resume_1" / "config.yaml").read_text())
    assert record["trainer"]["max_steps"] == 123
    assert (record["name"], record["model"]["dropout"], record["resume"]) == (
        *("reference", 0.1),
        "latest",
    )


def test_resume_skips_corrupt_latest_and_names_it(done: dict[str, Done], folder: Path) -> None:
    """Other regions of the file are tested in tests/runs/test_resume.py."""
    result = succeed(done["flipped"])
    assert "skipped flipped/checkpoints/latest.pt: " in result.out
    used = result.out.partition("resuming from ")[2].splitlines()[0]
    assert used.endswith(", step 120") and "latest.pt" not in used
    undisturbed, repaired = latest(folder / "extended"), latest(folder / "flipped")
    assert same_bits(undisturbed["model"], repaired["model"])
    assert same_bits(undisturbed["optimizer"], repaired["optimizer"])


def test_files_of_a_run_open_with_standard_tools(reference: Any) -> None:
    promised = {
        *("format", "step", "epoch", "tokens_seen", "model", "optimizer", "schedule", "rng"),
        *("data", "config", "overrides", "train_loss", "val_loss", "best_val_loss", "run"),
        *("reason", "saved_at", "versions"),
    }
    paths = list((reference.directory / "checkpoints").glob("*.pt"))
    assert len(paths) >= 12
    for path in paths:
        state = opened(path)
        assert promised <= set(state), path.name
        assert "transformer.h.0.attn.c_attn.weight" in state["model"]


def test_output_reports_start_steps_and_end(reference: Any) -> None:
    lines = reference.output.splitlines()
    for expected in (
        "device ",
        "precision ",
        "parameters ",
        "train data ",
        "checkpoints ",
        "disk ",
    ):
        assert any(line.startswith(expected) for line in lines), expected
    steps = [line for line in lines if line.startswith("step ") and " loss " in line]
    assert len(steps) == 120
    assert all(" lr " in line and " tok/s " in line for line in steps)
    assert any("gpt2ckpt.sample ckpt=run" in line for line in lines)
    log = (reference.directory / "train.log").read_text()
    assert all(line in log for line in steps)
