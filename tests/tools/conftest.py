"""Calls of the subcommands in this process, and a run that was really trained."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tools_helpers import Done, command, make_run

from gpt2ckpt.checkpoints import SUBCOMMANDS
from gpt2ckpt.errors import UserError
from gpt2ckpt.tools.command_line import call

Checkpoints = Callable[..., Done]


@pytest.fixture
def checkpoints(capsys: pytest.CaptureFixture[str]) -> Checkpoints:
    """Call a subcommand as the command does, without a new process."""

    def run(*arguments: str | Path) -> Done:
        capsys.readouterr()
        try:
            code, error = call(SUBCOMMANDS, [str(argument) for argument in arguments]), ""
        except UserError as reason:
            code, error = reason.exit_code, f"error: {reason}\n"
        output = capsys.readouterr()
        return Done(code, output.out, output.err + error)

    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with a checkpoint of every role."""
    return make_run(tmp_path / "outputs" / "gpt2_run_20251106_120000")


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained run of 8 steps with settings that are hard to quote."""
    folder = tmp_path_factory.mktemp("real")
    arguments = (
        *("model.n_layer=1", "model.n_embd=16", "model.n_head=1", "model.block_size=16"),
        *("trainer.threads=1", "trainer.device=cpu", "trainer.precision=float32", "logger=none"),
        *("trainer.batch_size=2", "trainer.max_steps=8", "trainer.eval_every=4"),
        *("trainer.eval_steps=1", "trainer.sample_every=0", "checkpoint.save_every=2"),
        *("schedule=wsd", "schedule.decay_steps=2", "schedule.warmup_steps=2"),
        *("optimizer.betas=[0.8,0.9]", "optimizer.eps=1e-7", "logger.wandb_tags=['a b',c]"),
        """trainer.sample_prompt='it\\'s "a=b", {c}: $HOME'""",
    )
    done = command("train", *arguments, "hydra.run.dir='outputs/a run, lr=3e-4'", cwd=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def real(trained_once: Path, tmp_path: Path) -> Path:
    """A copy of the real run that a test may change."""
    made = tmp_path / 'it\'s my lr=3e-4, "run"'
    shutil.copytree(trained_once / "outputs" / "a run, lr=3e-4", made)
    return made
