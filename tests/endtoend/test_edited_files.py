"""A run with edited or damaged files resumes and reports each of them."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from commands import ROOT, events, finish, latest, run, same_bits, start_interpreter, succeed

from gpt2ckpt.checkpoint.reading import load


def test_edited_metrics_file_is_reported_and_the_resume_is_exact(
    reference: Any, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(reference.directory, copy, copy_function=shutil.copy2)
    path = copy / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    at = {json.loads(line)["step"]: number for number, line in enumerate(lines)}
    lines[at[7]] = b""
    lines[at[9]] = lines[at[9]].replace(b'"train_loss": ', b'"train_loss": null, "was": ')
    lines[at[33]] = lines[at[33]][:40] + b"\n"
    lines[at[55]] = lines[at[55]].replace(b'"grad_norm": ', b'"grad_norm": null, "was": ')
    path.write_bytes(b"".join(lines))
    source = copy / "checkpoints" / "rolling_step_000020.pt"
    done = succeed(run("train", [f"+resume={source}"], tmp_path))
    [kept] = (copy / "checkpoints").glob("corrupt_*/metrics.jsonl")
    assert "metrics.jsonl lacks the train_loss of 2 steps: 7, 9\n" in done.out
    reasons = "2 damaged lines removed (line 8: train_loss is null; line 33: not JSON)"
    assert f"metrics.jsonl: {reasons}; kept in " in done.out
    assert len(kept.read_text().splitlines()) == 2
    assert "replay: 99 steps identical" in done.out  # 21 to 120, without the one that was cut short
    lost = (7, 9)
    assert events(copy) == [pair for pair in events(reference.directory) if pair[0] not in lost]
    undisturbed, resumed = latest(reference.directory), latest(copy)
    assert all(same_bits(undisturbed[key], resumed[key]) for key in ("model", "optimizer", "rng"))


def test_resume_reports_edited_source_code(reference: Any, tmp_path: Path) -> None:
    """The copy of the project clips gradients at a hundredth of the norm."""
    shutil.copytree(reference.directory, tmp_path / "run", copy_function=shutil.copy2)
    for name in ("gpt2ckpt", "conf"):
        unread = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=unread)
    step = tmp_path / "gpt2ckpt" / "training" / "step.py"
    edited = step.read_text().replace("self.grad_clip or math.inf", "0.01 * self.grad_clip")
    assert edited != step.read_text()
    step.write_text(edited)
    overrides = ["+resume=latest", "hydra.run.dir=run", "trainer.max_steps=121"]
    copy = {"PYTHONPATH": str(tmp_path)}
    done = succeed(finish(start_interpreter("train", overrides, tmp_path, copy)))
    old = latest(reference.directory)["versions"]["code"]
    new = latest(tmp_path / "run")["versions"]["code"]
    assert old != new
    [line] = [line for line in done.out.splitlines() if "not bitwise equal" in line]
    assert f": code {old[:8]} (" in line and f" → {new[:8]} (no commit)" in line


def test_resume_repairs_a_damaged_file_before_the_first_save(
    reference: Any, tmp_path: Path
) -> None:
    """After one flipped bit and two more steps, all states exist in valid files."""
    folder = tmp_path / "run" / "checkpoints"
    subprocess.run(
        ["cp", "-a", reference.directory, tmp_path / "run"], check=True
    )  # hard links too
    content = bytearray((folder / "latest.pt").read_bytes())
    content[int(0.6 * len(content))] ^= 16
    with (folder / "latest.pt").open("r+b") as file:
        file.write(content)
    damaged = [path for path in folder.iterdir() if path.samefile(folder / "latest.pt")]
    assert len(damaged) > 1
    overrides = ["+resume=latest", "hydra.run.dir=run", "trainer.max_steps=122"]
    done = succeed(run("train", overrides, tmp_path))
    [quarantine] = folder.glob("corrupt_*")
    assert {path.name for path in quarantine.iterdir()} == {path.name for path in damaged}
    [line] = [line for line in done.out.splitlines() if "DAMAGED ON DISK" in line]
    assert all(path.name in line for path in damaged)
    assert (
        f"repaired from best_model_backup.pt. The damaged file is kept in {quarantine.name}" in line
    )
    steps = {path.name: load(path)["step"] for path in folder.glob("*.pt")}  # each verified
    assert (steps["latest.pt"], steps["latest_backup.pt"]) == (122, 120)
    assert steps["rolling_step_000120.pt"] == 120
