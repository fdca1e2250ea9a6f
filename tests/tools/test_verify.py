"""`verify`: checks every byte of checkpoints, and reports files of other programs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tools_helpers import REPOSITORY, command, damage, save


def verified(checkpoints, *arguments) -> tuple[int, dict[str, dict]]:
    done = checkpoints("verify", *arguments, "--json")
    return done.code, {Path(item["path"]).name: item for item in json.loads(done.out)}


def test_verify_of_a_valid_run(checkpoints, run) -> None:
    code, found = verified(checkpoints, run)
    assert code == 0
    assert len(found) == 13
    assert all(item["valid"] is True and item["error"] is None for item in found.values())
    assert found["latest.pt"]["step"] == 30
    done = checkpoints("verify", run)
    assert f"valid    {run}/checkpoints/latest.pt (step 30)\n" in done.out
    assert done.out.endswith("13 files, 0 corrupt\n")


@pytest.mark.parametrize("at", [0.0, 0.02, 0.5, 0.9, 0.9999])
def test_verify_finds_a_flipped_bit_under_every_name(at, checkpoints, run) -> None:
    damage(run / "checkpoints" / "latest.pt", at)
    code, found = verified(checkpoints, run)
    assert code == 1
    wrong = {name for name, item in found.items() if item["valid"] is False}
    assert wrong == {
        *("latest.pt", "best_model.pt", "rolling_step_000030.pt", "epoch_00002.pt"),
    }
    assert all("cannot be used" in found[name]["error"] for name in wrong)
    assert checkpoints("verify", run).out.count("CORRUPT ") == 4


def test_verify_finds_swapped_files(checkpoints, run) -> None:
    first, second = (run / f"checkpoints/rolling_step_0000{step}.pt" for step in (10, 20))
    first.rename(run / "aside")
    second.rename(first)
    (run / "aside").rename(second)
    code, found = verified(checkpoints, run)
    assert code == 1
    assert found[first.name]["error"] == "it holds step 20: a different file is in its place"
    assert found[second.name]["valid"] is False


def test_verify_lists_foreign_files_without_an_error(checkpoints, run) -> None:
    (run / "checkpoints" / "notes.txt").write_text("mine")
    torch.save({"a": 1}, run / "checkpoints" / "other.pt")
    os.mkfifo(run / "checkpoints" / "pipe")
    (run / "checkpoints" / ".latest.pt.host-1-00000000.tmp").write_bytes(b"half")
    code, found = verified(checkpoints, run)
    assert code == 0
    assert len(found) == 15
    for name in ("notes.txt", "other.pt"):
        assert found[name]["valid"] is None
        assert found[name]["error"] == "it is not a checkpoint of gpt2ckpt"
    assert "foreign  " in checkpoints("verify", run).out


def test_verify_of_a_given_foreign_file_fails(checkpoints, tmp_path) -> None:
    torch.save({"a": 1}, tmp_path / "other.pt")
    code, found = verified(checkpoints, tmp_path / "other.pt")
    assert code == 1
    assert found["other.pt"]["valid"] is False


def test_every_command_names_a_file_that_is_not_a_checkpoint_alike(checkpoints, tmp_path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# A page\n" * 40)
    for arguments in (["verify", path], ["show", path], ["export", path, "--to", "hf", "x"]):
        done = checkpoints(*arguments)
        assert done.code == 1
        printed = done.out + done.err
        assert f"{path} cannot be used: it is not a checkpoint of gpt2ckpt: pass a file" in printed
    for name, key in (("train", "+resume"), ("sample", "ckpt")):
        done = command(name, f"{key}={path}", cwd=tmp_path)
        assert done.code == 1
        assert f"{path} cannot be used: it is not a checkpoint of gpt2ckpt" in done.err


def test_foreign_content_under_a_checkpoint_name_is_corrupt(checkpoints, run) -> None:
    (run / "checkpoints" / "epoch_00002.pt").unlink()
    torch.save({"a": 1}, run / "checkpoints" / "epoch_00002.pt")
    code, found = verified(checkpoints, run)
    assert (code, found["epoch_00002.pt"]["valid"]) == (1, False)


def test_verify_of_files_runs_and_roots(checkpoints, run, tmp_path) -> None:
    other = save(tmp_path / "other", 3)
    copy = tmp_path / "copied by hand.pt"
    copy.write_bytes(other.read_bytes())
    done = checkpoints("verify", run.parent, other, tmp_path / "other", copy)
    assert done.code == 0
    assert done.out.endswith("18 files, 0 corrupt\n")
    damage(copy)
    assert checkpoints("verify", run.parent, copy).code == 1


def test_verify_of_a_missing_path_exits_1(checkpoints, run) -> None:
    done = checkpoints("verify", run / "checkpoints" / "latest.pt", run / "no.pt")
    assert done.code == 1
    assert done.err.startswith(f"error: {run}/no.pt does not exist")
    assert done.out == ""


def test_verify_selectors_mean_the_newest_run(checkpoints, run, monkeypatch) -> None:
    monkeypatch.chdir(run.parents[1])
    code, found = verified(checkpoints, "best_previous", "emergency")
    assert code == 0
    assert {item["step"] for item in found.values()} == {20, 25}


PEAK = """
import sys
from pathlib import Path
from gpt2ckpt.tools.verify import Checker
assert Checker()(Path(sys.argv[1])).valid
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))
"""  # not ru_maxrss, which includes the parent's memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells peak memory there")
def test_verify_uses_constant_memory(tmp_path: Path) -> None:
    def peak(megabytes: int) -> int:
        tensor = torch.zeros(megabytes << 20, dtype=torch.uint8)
        path = save(tmp_path / str(megabytes), 1, {"model": {"wte": tensor}})
        arguments = [sys.executable, "-c", PEAK, str(path)]
        done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return int(done.stdout) * 1024

    assert peak(48) - peak(16) < 8 << 20
