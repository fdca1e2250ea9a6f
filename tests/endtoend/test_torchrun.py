"""Two ranks under a real torchrun, on the CPU by gloo."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import Done, environment, events, finish, latest, succeed

SETTINGS = (
    *("model.dropout=0.1", "trainer.batch_size=2", "trainer.grad_accum=2", "trainer.max_steps=40"),
    *("trainer.eval_every=15", "trainer.eval_steps=5", "checkpoint.save_every=7"),
    *("optimizer.lr=1e-2", "schedule=constant"),
)
EXACT = ("model", "optimizer", "rng", "data", "step", "tokens_seen", "val_loss", "best_val_loss")


def torchrun(words: list[str], cwd: Path, *flags: str, ranks: int = 2) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *flags]
    command += [f"--nproc_per_node={ranks}", "-m", "gpt2ckpt.train", *words]
    pipe = subprocess.PIPE
    one_thread = {**environment(), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=cwd, env=one_thread, text=True, stdout=pipe, stderr=pipe)


def run(words: list[str], cwd: Path, *flags: str, ranks: int = 2) -> Done:
    process = torchrun(words, cwd, *flags, ranks=ranks)
    try:
        return finish(process)
    finally:
        kill_all(process)


def kill_all(process: "subprocess.Popen[str]") -> None:
    """SIGKILL to torchrun and to every rank; each rank has a process group of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        launcher = psutil.Process(process.pid)
        for each in [launcher, *launcher.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    process.communicate()


@pytest.fixture(scope="module")
def words(token_data: Any) -> list[str]:
    return [*token_data.overrides, *SETTINGS]


@pytest.fixture(scope="module")
def whole(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A run of 40 steps on two ranks that nothing disturbed."""
    folder = tmp_path_factory.mktemp("ranks")
    done = succeed(run([*words, "hydra.run.dir=whole"], folder))
    return folder / "whole", done


def test_one_directory_one_log_one_history(whole: tuple[Path, Done]) -> None:
    directory, done = whole
    assert [path.name for path in directory.parent.iterdir()] == ["whole"]
    assert [step for step, _ in events(directory)] == list(range(1, 41))
    assert done.out.count("step 40/40 | loss") == 1
    assert "2 ranks" in " ".join(done.out.split())
    assert (directory / "train.log").read_text().count("step 40/40 | loss") == 1
    assert sorted(path.name for path in (directory / ".hydra").iterdir()) == [
        *("config.yaml", "hydra.yaml", "overrides.yaml")
    ]
    names = set(latest(directory)["model"])
    assert "transformer.wte.weight" in names
    assert all(name.startswith(("transformer.", "lm_head.")) for name in names)


def test_what_cannot_be_trained_is_said_once_and_nothing_is_written(
    words: list[str], tmp_path: Path
) -> None:
    done = run([*words, "trainer.batch_size=3", "trainer.grad_accum=1"], tmp_path)
    assert done.code != 0
    [line] = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "2 ranks cannot share" in line and "multiple of 2" in line
    assert done.err.count("exitcode  : 2") == 2  # of both ranks, in torchrun's own report
    assert list(tmp_path.iterdir()) == []
