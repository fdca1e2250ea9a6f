"""Help, wrong arguments, exit codes, pipes, and imports of `gpt2ckpt.checkpoints`."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tools_helpers import REPOSITORY, command

from gpt2ckpt.checkpoints import SUBCOMMANDS
from gpt2ckpt.tools.command_line import PROGRAM

WITHOUT_TORCH = """
import sys
from gpt2ckpt.checkpoints import SUBCOMMANDS
from gpt2ckpt.tools.command_line import call
run = sys.argv[1]
for arguments in (
    ["list", run], ["list", run, "--json"], ["show", run], ["log", run], ["resume-command", run],
    ["verify", run], ["diff", run, run + "/checkpoints/best_model_previous.pt", "--tensors"],
    ["repair", run], ["prune", run, "--keep-rolling", "1", "--yes"],
):
    call(SUBCOMMANDS, arguments)
    assert "torch" not in sys.modules, arguments
    assert "numpy" not in sys.modules, arguments
"""


def test_only_export_imports_torch(run: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(run)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_every_subcommand_has_help_with_examples(subcommand, checkpoints, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        checkpoints(subcommand, "--help")
    assert ended.value.code == 0
    help_text = capsys.readouterr().out
    assert f"{PROGRAM} {subcommand}" in help_text.partition("examples:")[2]


def test_help_lists_every_subcommand(checkpoints, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        checkpoints("--help")
    assert ended.value.code == 0
    help_text = capsys.readouterr().out
    assert all(f"\n  {subcommand} " in help_text for subcommand in SUBCOMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "lst",
            "there is no subcommand lst; the subcommands are list, verify, .* Did you mean list?",
        ),
        ("resume_command x", "Did you mean resume-command?"),
        ("", "the subcommand is missing"),
        ("list --jsn", "unrecognized arguments: --jsn. Did you mean --json?"),
        ("prune --keep-roling=3", "Did you mean --keep-rolling?"),
        ("prune --keep-rolling -1", "'-1' is not a whole number of at least 0"),
        ("prune --keep-rolling=x", "'x' is not a whole number of at least 0"),
        ("prune --keep-runs 0", "'0' is not a whole number of at least 1"),
        ("show", "PATH is missing: pass a checkpoint file, a run directory"),
        (
            "export a b",
            "--to is missing: pass hf: a folder for .* gpt2ckpt.checkpoints export --help",
        ),
        ("show a b", "unrecognized arguments: b. .* gpt2ckpt.checkpoints show --help lists"),
        ("list --al", "unrecognized arguments: --al. python -m gpt2ckpt.checkpoints list --help"),
        ("export a --to pickle b", "invalid choice: 'pickle'"),
    ],
)
def test_wrong_argument_exits_2_and_names_the_nearest(arguments, message, checkpoints):
    done = checkpoints(*arguments.split())
    assert done.code == 2
    for part in message.split(" .* "):
        assert part in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    "arguments", ["verify a --json b", "verify --json a b", "verify a b --json"]
)
def test_flags_are_accepted_in_any_position(
    arguments, checkpoints, run, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run.rename(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    done = checkpoints(*arguments.split())
    assert done.code == 0, done.err
    assert done.out.count("latest.pt") == 2


@pytest.mark.parametrize("subcommand", ["list", "verify", "log", "repair", "prune"])
def test_missing_directory_exits_1_with_one_error_line(subcommand, checkpoints, tmp_path) -> None:
    done = checkpoints(subcommand, tmp_path / "nowhere")
    assert done.code == 1
    assert done.err.startswith(f"error: {tmp_path}/nowhere does not exist")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("subcommand", ["list", "verify", "log", "repair", "prune"])
def test_fresh_clone_without_checkpoints_exits_0(
    subcommand, checkpoints, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = checkpoints(subcommand)
    reason = f"since {tmp_path}/outputs does not exist: run the command in the directory"
    assert done.code == 0
    assert done.out.startswith(f"there are no checkpoints in outputs, {reason}")
    (tmp_path / "outputs").mkdir()
    assert checkpoints(subcommand).out == "there are no checkpoints in outputs\n"


def test_command_prints_errors_in_one_line(tmp_path: Path) -> None:
    done = command("checkpoints", "show", "no.pt", cwd=tmp_path)
    assert (done.code, done.out) == (1, "")
    reason = f"no.pt: there is no such file or directory in {tmp_path}"
    assert done.err.startswith(f"error: {reason}: pass a run directory, a checkpoint file, or one")
    assert done.err.count("\n") == 1
    done = command("checkpoints", "lits", cwd=tmp_path)
    assert done.code == 2
    assert done.err.count("\n") == 1


def test_closed_pipe_prints_no_error(run: Path) -> None:
    reader = subprocess.Popen(
        [sys.executable, "-m", "gpt2ckpt.checkpoints", "list", str(run)],
        cwd=REPOSITORY,
        env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout and reader.stderr
    reader.stdout.close()
    assert reader.stderr.read() == ""
    reader.wait()


@pytest.mark.parametrize(
    ("path", "code", "part"),
    [("bset", 2, "Did you mean best?"), ("latest", 1, "there is no checkpoint in outputs")],
)
def test_unusable_path_is_reported(path, code, part, checkpoints, tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        for subcommand in ("show", "verify"):
            done = checkpoints(subcommand, path)
            assert done.code == code
            assert part in done.err
