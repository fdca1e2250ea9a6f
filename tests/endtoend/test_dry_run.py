"""A dry run prints what a start prints, including warnings, and writes nothing."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import run, succeed, tree

from gpt2ckpt.train import main

LABELS = re.compile(
    r"(device|precision|compute|model|parameters|work|optimizer|step|training|time|train data|"
    r"val data|memory|checkpoints|warning|) {2,}"
)


@pytest.fixture
def dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run the command with dry_run=true and return its exit code and output."""
    monkeypatch.chdir(tmp_path)

    def dry_run(*overrides: str) -> tuple[int, str]:
        before = tree(tmp_path)
        monkeypatch.setattr("sys.argv", ["train", *overrides, "dry_run=true"])
        with pytest.raises(SystemExit) as end:
            main()
        assert tree(tmp_path) == before
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out + printed.err

    return dry_run


def announced(out: str) -> list[str]:
    """Return the lines of the plan without the directory and the disk, which change."""
    lines = [line for line in out.splitlines() if LABELS.match(line)]
    return [line for line in lines if not line.startswith(("disk", "run "))]


def test_dry_run_prints_the_start_summary_and_the_time_of_a_resume(
    token_data: Any, tmp_path: Path, dry_run: Callable[..., tuple[int, str]]
) -> None:
    overrides = [*token_data.overrides, "trainer.max_steps=6", "schedule.steps=9"]
    overrides.append("checkpoint.save_every=3")
    code, out = dry_run(*overrides, "hydra.run.dir=mine")
    assert code == 0
    assert "disk  " in out and "\nrun  " not in out
    assert "warning      schedule.steps=9 is longer than the run of 6 steps" in out
    assert max(map(len, announced(out))) <= 80
    real = succeed(run("train", [*overrides, "hydra.run.dir=mine"], tmp_path))
    until_first_step = real.out.partition("\nstep 1/6")[0]
    assert announced(out) == announced(until_first_step) != []
    longer = ["trainer.max_steps=4000", "trainer.max_steps=5000"]
    code, out = dry_run("+resume=latest", *longer, "hydra.run.dir=mine")
    assert code == 0 and "5,000 steps (6 done)" in out
    assert "trainer.max_steps is set to 4000, then to 5000:" in out
    assert "would archive" not in out
    speed = r"^time         about .* for 4,994 steps at [\d,]+ tok/s \(last logged\)"
    assert re.search(speed, out, re.MULTILINE)
    code, out = dry_run("+resume=mine/checkpoints/rolling_step_000003.pt")
    assert code == 0 and "\nwould archive the checkpoints after step 3 (" in out


def test_dry_run_of_a_resume_prints_why_it_is_not_exact(
    token_data: Any,
    tmp_path: Path,
    dry_run: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = ["hydra.run.dir=mine", "trainer.threads=1", "trainer.max_steps=2"]
    succeed(run("train", [*token_data.overrides, *overrides], tmp_path))
    overrides = ["+resume=latest", "hydra.run.dir=mine", "trainer.threads=2", "trainer.max_steps=3"]
    monkeypatch.setenv("MKL_DYNAMIC", "FALSE")
    _, out = dry_run(*overrides)
    start = succeed(run("train", overrides, tmp_path)).out
    [shown], [line] = (
        [line for line in text.splitlines() if "not bitwise equal" in line] for text in (out, start)
    )
    assert "threads 1 → 2, MKL_DYNAMIC unset → FALSE" in shown
    assert line.endswith(shown)
    _, out = dry_run("+resume=latest", "hydra.run.dir=mine", "trainer.max_steps=4")
    assert "not bitwise" not in out


def test_absurd_number_of_epochs_is_a_warning(
    dry_run: Callable[..., tuple[int, str]],
) -> None:
    code, out = dry_run("experiment=gpt2_small")
    text = " ".join(line[13:] for line in announced(out))
    times = re.search(r"reads its training data, [\d,]+ tokens, ([\d,]+) times", text)
    assert code == 0 and times and int(times[1].replace(",", "")) > 90_000
    assert re.search(r"\d{5}", text) is None, "a number without separators"
    assert "time         not known before the first steps" in out


def test_dry_run_of_a_sweep_prints_a_shared_warning_once(
    token_data: Any, dry_run: Callable[..., tuple[int, str]]
) -> None:
    swept = ["seed=1,2", "trainer.max_steps=6,9000", "schedule.steps=9000"]
    code, out = dry_run("-m", *token_data.overrides, *swept)
    text = " ".join(out.split())
    assert code == 0
    assert text.count("0, 2: warning: schedule.steps=9,000 is longer than the run of 6 steps") == 1
    assert text.count("1, 3: warning: the run reads its training data") == 1


def test_dry_run_is_refused_with_the_error_of_the_start(
    dry_run: Callable[..., tuple[int, str]],
) -> None:
    code, out = dry_run("trainer.precision=float16", "trainer.device=cpu")
    assert code == 2 and "precision=float16 needs a CUDA device" in out
