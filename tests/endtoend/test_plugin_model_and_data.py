"""A model and data of plugins: killed and resumed bitwise, on one and two ranks, and drilled."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from commands import (
    PATIENCE,
    environment,
    finish,
    latest,
    run,
    same_bits,
    start,
    steps_done,
    succeed,
    wait_until,
)
from extending import write_examples

SETTINGS = [
    *("plugins=[rope,arithmetic]", "model=rope", "data=arithmetic", "model.layers=2"),
    *("model.width=32", "model.block_size=30", "model.vocab_size=13", "optimizer=muon"),
    *(
        "trainer.batch_size=2",
        "trainer.grad_accum=2",
        "trainer.max_steps=60",
        "trainer.log_every=1",
    ),
    *("trainer.eval_every=20", "trainer.eval_blocks=8", "trainer.sample_every=25"),
    *(
        "trainer.log_every=1",
        "trainer.threads=1",
        "checkpoint.save_every=7",
        "logger=none",
        "schedule=constant",
    ),
]
EXACT = ("model", "optimizer", "rng", "data", "val_loss", "best_val_loss")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_examples(tmp_path, "rope", "arithmetic")
    return tmp_path


def test_killed_run_resumes_bitwise_and_changed_data_is_refused(folder: Path) -> None:
    succeed(run("train", [*SETTINGS, "hydra.run.dir=undisturbed"], folder))
    process = start("train", [*SETTINGS, "hydra.run.dir=killed"], folder)
    wait_until(process, lambda: steps_done(folder / "killed") > 24)
    process.kill()
    finish(process)
    resume = ["plugins=[rope,arithmetic]", "+resume=latest", "hydra.run.dir=killed"]
    done = succeed(run("train", resume, folder))
    assert "resuming from killed/checkpoints/" in done.out and "identical" in done.out
    expected, resumed = latest(folder / "undisturbed"), latest(folder / "killed")
    assert "1.0.rotation" in resumed["model"]
    for key in EXACT:
        assert same_bits(expected[key], resumed[key]), key

    show = succeed(run("checkpoints", ["show", "killed"], folder)).out
    assert "model.rope" in show and "data.arithmetic" in show
    succeed(run("checkpoints", ["diff", "undisturbed", "killed", "--tensors"], folder))
    refused = run("checkpoints", ["export", "killed", "--to", "hf", "out"], folder)
    assert (refused.code, (folder / "out").exists()) == (1, False)
    assert "holds a model of the kind 'rope'" in refused.message
    succeed(run("checkpoints", ["export", "killed", "--to", "weights", "out"], folder))
    sample = ["plugins=[rope,arithmetic]", "ckpt=killed", "prompt='0 7 10 9 4 11'", "max_tokens=3"]
    assert succeed(run("sample", sample, folder)).out.startswith("0 7 10 9 4 11 ")

    source = folder / "arithmetic.py"
    source.write_text(source.read_text().replace("7919", "7907"))
    refused = run("train", [*resume, "trainer.max_steps=61"], folder)
    assert refused.code == 1
    assert "arithmetic (train) and 1 more has changed" in refused.err


def test_two_ranks_resume_bitwise_after_a_kill(folder: Path) -> None:
    def launch(*overrides: str) -> "subprocess.Popen[str]":
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        command = [sys.executable, *torchrun, "-m", "gpt2ckpt.train", *overrides]
        own = {**environment(), "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=folder, env=own, text=True, stdout=pipe, stderr=pipe)

    def end(group: "subprocess.Popen[str]") -> None:
        out, err = group.communicate(timeout=PATIENCE)
        assert group.returncode == 0, out + err

    end(launch(*SETTINGS, "hydra.run.dir=undisturbed"))
    group = launch(*SETTINGS, "hydra.run.dir=killed")
    try:
        wait_until(group, lambda: steps_done(folder / "killed") > 24)
    finally:
        for process in [*psutil.Process(group.pid).children(), psutil.Process(group.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                os.kill(process.pid, signal.SIGKILL)
        group.communicate(timeout=PATIENCE)
    end(launch("plugins=[rope,arithmetic]", "+resume=latest", "hydra.run.dir=killed"))
    expected, resumed = latest(folder / "undisturbed"), latest(folder / "killed")
    for key in EXACT:
        assert same_bits(expected[key], resumed[key]), key


def test_drill_passes(folder: Path) -> None:
    done = succeed(finish(start("drill", [*SETTINGS, "steps=4"], folder)))
    assert "exact" in done.out


def test_sweep_over_keys_of_plugins(folder: Path) -> None:
    sweep = ["-m", *SETTINGS, "model.layers=1,2", "trainer.max_steps=3", "hydra.sweep.dir=sweep"]
    done = succeed(run("train", sweep, folder))
    for job, layers in enumerate((1, 2)):
        assert latest(folder / "sweep" / str(job))["config"]["model"]["layers"] == layers, done
