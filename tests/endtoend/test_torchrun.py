"""Two ranks under torchrun, on CPUs with gloo."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import Done, environment, events, latest, opened, same_bits, steps_done, succeed
from commands import start as start_alone

from gpt2ckpt.runs.events import read_events

STEPS = 100
MIDDLE = 60  # an evaluation is due there anyway, and a run that ends makes one
PATIENCE = 300  # seconds; one start of a group imports torch three times
KILLS = int(os.environ.get("GPT2CKPT_RANK_KILLS", "1"))
SEED = random.randrange(1 << 30)  # printed by the assertion that fails
SETTINGS = (
    *("trainer.batch_size=2", "trainer.grad_accum=2", f"trainer.max_steps={STEPS}"),
    *("trainer.eval_every=15", "trainer.eval_steps=5", "checkpoint.save_every=7"),
    *("optimizer.lr=3e-3", "schedule=constant"),
)
DROPOUT = "model.dropout=0.1"
EXACT = ("model", "optimizer", "rng", "data", "step", "tokens_seen", "val_loss", "best_val_loss")
Group = "subprocess.Popen[str]"


def start(
    overrides: list[str], cwd: Path, *flags: str, program: Sequence[str] = ("-m", "gpt2ckpt.train")
) -> Group:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *flags]
    command += ["--nproc_per_node=2", *program, *overrides]
    pipe = subprocess.PIPE
    one_thread = {**environment(), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=cwd, env=one_thread, text=True, stdout=pipe, stderr=pipe)


def finish(group: Group) -> Done:
    try:
        out, err = group.communicate(timeout=PATIENCE)
        return Done(group.returncode, out, err)
    finally:
        if group.poll() is None:
            kill(group)


def run(overrides: list[str], cwd: Path, *flags: str) -> Done:
    return finish(start(overrides, cwd, *flags))


def run_alone(overrides: list[str], cwd: Path) -> Done:
    return finish(start_alone("train", overrides, cwd))


def kill(group: Group) -> None:
    """Send SIGKILL to torchrun and to every rank, each in its own process group."""
    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(group.pid)
        for process in [launcher, *launcher.children()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    group.communicate(timeout=PATIENCE)


def send(group: Group, rank: int, number: signal.Signals) -> None:
    """Send a signal to one rank only."""
    for process in psutil.Process(group.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.environ().get("RANK") == str(rank):
                process.send_signal(number)


def wait_for_step(group: Group, directory: Path, step: int) -> None:
    end = time.monotonic() + PATIENCE
    while steps_done(directory) < step:
        if group.poll() is not None or time.monotonic() > end:
            done = finish(group)
            pytest.fail(done.out + done.err)
        time.sleep(0.002)


def assert_same_run(found: Path, expected: Path, where: str = "") -> None:
    """Assert that the last states and all losses are bitwise equal."""
    for key in EXACT:
        assert same_bits(latest(found)[key], latest(expected)[key]), f"{where}: {key}"
    for key in ("train_loss", "val_loss"):
        assert events(found, key) == events(expected, key), f"{where}: {key}"


@pytest.fixture(scope="module")
def overrides(token_data: Any) -> list[str]:
    return [*token_data.overrides, *SETTINGS]


@pytest.fixture(scope="module")
def undisturbed(
    overrides: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Done]:
    """Return an undisturbed run with dropout on two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    done = succeed(run([*overrides, DROPOUT, "hydra.run.dir=undisturbed"], folder))
    return folder / "undisturbed", done


@pytest.fixture(scope="module")
def alone(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an undisturbed run without dropout in one process."""
    folder = tmp_path_factory.mktemp("alone")
    succeed(run_alone([*overrides, "hydra.run.dir=alone"], folder))
    return folder / "alone"


def test_ranks_share_one_directory_log_and_history(undisturbed: tuple[Path, Done]) -> None:
    directory, done = undisturbed
    last = f"step {STEPS}/{STEPS} | loss"
    assert [path.name for path in directory.parent.iterdir()] == ["undisturbed"]
    assert [step for step, _ in events(directory)] == list(range(1, STEPS + 1))
    assert done.out.count(last) == 1
    assert (directory / "events.jsonl").read_text().count('"run_started"') == 1
    once = [(event["event"], event["step"]) for event in read_events(directory)]
    assert len(once) == len({*once}) and once[-1] == ("run_finished", STEPS)
    assert "2 ranks" in " ".join(done.out.split())
    assert (directory / "train.log").read_text().count(last) == 1
    record = sorted(path.name for path in (directory / ".hydra").iterdir())
    assert record == ["config.yaml", "hydra.yaml", "overrides.yaml"]
    names = set(latest(directory)["model"])
    assert "transformer.wte.weight" in names
    assert all(name.startswith(("transformer.", "lm_head.")) for name in names)


def test_ranks_print_an_error_once_and_write_nothing(overrides: list[str], tmp_path: Path) -> None:
    done = run([*overrides, "trainer.batch_size=3", "trainer.grad_accum=1"], tmp_path)
    assert done.code != 0
    [line] = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "2 ranks cannot share" in line and "multiple of 2" in line
    assert done.err.count("exitcode  : 2") == 2  # of both ranks, in torchrun's own report
    assert list(tmp_path.iterdir()) == []


def test_group_restarted_by_torchrun_resumes_bitwise_in_its_directory(
    overrides: list[str], undisturbed: tuple[Path, Done], tmp_path: Path
) -> None:
    """The second rank is killed, then the first; the command has neither directory nor resume."""
    group = start([*overrides, DROPOUT], tmp_path, "--max-restarts=2")
    while not (found := list(tmp_path.glob("outputs/*/metrics.jsonl"))) and group.poll() is None:
        time.sleep(0.01)
    directory = found[0].parent
    wait_for_step(group, directory, 10)
    send(group, 1, signal.SIGKILL)
    at_least = steps_done(directory) + 15
    wait_for_step(group, directory, at_least)
    send(group, 0, signal.SIGKILL)
    done = succeed(finish(group))
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == [directory.name]
    assert done.out.count("resuming from") == 2
    assert "another rank has ended" in done.err
    assert_same_run(directory, undisturbed[0])


def test_group_killed_at_random_equals_an_undisturbed_run_bitwise(
    overrides: list[str], undisturbed: tuple[Path, Done], tmp_path: Path
) -> None:
    """GPT2CKPT_RANK_KILLS sets the number of kills (1 by default)."""
    run_overrides = [*overrides, DROPOUT, "hydra.run.dir=killed", "+resume=auto"]
    directory, dice = tmp_path / "killed", random.Random(SEED)
    for left in range(KILLS, 0, -1):
        group = start(run_overrides, tmp_path)
        room = max((STEPS - steps_done(directory)) // left, 2)
        target = min(steps_done(directory) + dice.randrange(1, room), STEPS - 1)
        wait_for_step(group, directory, target)
        time.sleep(dice.random() * 0.05)
        kill(group)
    done = succeed(run(run_overrides, tmp_path))
    assert "differs" not in done.out
    assert_same_run(directory, undisturbed[0], f"seed {SEED}")


def test_signal_to_one_rank_stops_all_and_another_number_of_ranks_resumes(
    overrides: list[str], alone: Path, tmp_path: Path
) -> None:
    """2 ranks, then 1, then 2 have the losses of one undisturbed rank, up to rounding."""
    directory = tmp_path / "run"
    group = start([*overrides, "hydra.run.dir=run"], tmp_path)
    wait_for_step(group, directory, 10)
    send(group, 1, signal.SIGTERM)
    done = finish(group)
    assert done.err.count("exitcode  : 143") == 2
    assert "torchrun --standalone --nproc_per_node=2 -m gpt2ckpt.train +resume=latest" in done.out
    [emergency] = (directory / "checkpoints").glob("emergency_step_*.pt")
    assert opened(emergency)["reason"] == "SIGTERM"
    assert opened(emergency)["step"] == steps_done(directory) < MIDDLE

    again = ["hydra.run.dir=run", "+resume=latest"]
    one = succeed(run_alone([*again, f"trainer.max_steps={MIDDLE}"], tmp_path))
    assert "not bitwise equal to an uninterrupted run: ranks 2 → 1" in one.out
    two = succeed(run([*again, f"trainer.max_steps={STEPS}"], tmp_path))
    assert "ranks 1 → 2" in two.out
    assert latest(directory)["data"] == latest(alone)["data"]
    for key in ("train_loss", "val_loss"):
        steps, losses = zip(*events(directory, key), strict=True)
        expected_steps, expected = zip(*events(alone, key), strict=True)
        assert steps == expected_steps
        assert losses == pytest.approx(expected, rel=1e-4), key


def test_sharded_model_is_saved_unsharded_and_resumes_in_one_process(
    overrides: list[str], alone: Path, tmp_path: Path
) -> None:
    short = [
        *overrides,
        f"trainer.max_steps={MIDDLE}",
        "trainer.parallel=fsdp",
        "hydra.run.dir=run",
    ]
    short += [f"trainer.sample_every={MIDDLE}", "trainer.sample_tokens=3"]
    assert succeed(run(short, tmp_path)).out.count("sample: 0 ") == 1
    directory = tmp_path / "run"
    state, expected = latest(directory), latest(alone)
    assert state["model"].keys() == expected["model"].keys()
    for name, weight in state["model"].items():
        assert weight.shape == expected["model"][name].shape
    tied = [state["model"][name] for name in ("lm_head.weight", "transformer.wte.weight")]
    assert tied[0].data_ptr() == tied[1].data_ptr(), "the embedding is in the file twice"
    again = ["hydra.run.dir=run", "+resume=latest", f"trainer.max_steps={STEPS}"]
    succeed(run_alone(again, tmp_path))
    for key in ("train_loss", "val_loss"):
        losses = [loss for _, loss in events(directory, key)]
        assert losses == pytest.approx([loss for _, loss in events(alone, key)], rel=1e-4), key


def test_non_finite_weights_on_one_rank_roll_back_all_ranks(
    overrides: list[str], tmp_path: Path
) -> None:
    """Two ranks have the steps, blocks and (up to rounding) losses of one process."""
    short = [*overrides, "checkpoint.save_every=3", "trainer.max_steps=25"]
    short += ["trainer.eval_every=0", "trainer.on_bad_loss=rollback"]
    program = [str(Path(__file__).with_name("spoiled.py"))]
    done = succeed(finish(start([*short, "hydra.run.dir=two"], tmp_path, program=program)))
    command = [sys.executable, *program, *short, "hydra.run.dir=one"]
    subprocess.run(command, cwd=tmp_path, env=environment(), check=True, capture_output=True)
    assert "step 9 is not saved" in done.out
    assert "from step 9 back to step 6" in done.out
    for key in ("train_loss", "skipped_blocks"):
        steps, values = zip(*events(tmp_path / "two", key), strict=True)
        expected_steps, expected = zip(*events(tmp_path / "one", key), strict=True)
        assert steps == expected_steps
        assert values == pytest.approx(expected, rel=1e-4), key
    assert latest(tmp_path / "two")["data"] == latest(tmp_path / "one")["data"]
    assert [step for step, _ in events(tmp_path / "two")] == list(range(1, 26))


def test_ranks_save_and_end_if_their_launcher_is_killed(
    overrides: list[str], tmp_path: Path
) -> None:
    group = start([*overrides, "trainer.max_steps=100000", "hydra.run.dir=run"], tmp_path)
    wait_for_step(group, tmp_path / "run", 10)
    ranks = psutil.Process(group.pid).children()
    group.kill()
    _, alive = psutil.wait_procs(ranks, timeout=PATIENCE)
    assert alive == []
    group.communicate()
    [emergency] = (tmp_path / "run" / "checkpoints").glob("emergency_step_*.pt")
    assert opened(emergency)["reason"] == "SIGTERM"
    assert opened(emergency)["step"] == steps_done(tmp_path / "run")
