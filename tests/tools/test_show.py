"""`show`: metadata and frozen config of a checkpoint."""

import json
import shutil
from pathlib import Path

import yaml
from tools_helpers import damage, frozen


def test_show_prints_metadata_and_config_without_tensors(checkpoints, run) -> None:
    done = checkpoints("show", run / "checkpoints" / "best_model_previous.pt")
    assert done.code == 0
    shown = yaml.safe_load(done.out)
    assert shown["step"] == 20
    assert shown["val_loss"] == 4.3
    assert shown["run"]["id"] == "1a2b3c4d"
    assert shown["config"]["optimizer"] == frozen()["optimizer"]
    assert "model" not in shown


def test_show_json(checkpoints, run) -> None:
    shown = json.loads(checkpoints("show", run, "--json").out)
    assert shown["path"] == str(run / "checkpoints" / "latest.pt")
    assert shown["config"] == json.loads(json.dumps(frozen()))


def test_show_selector_means_the_newest_run(checkpoints, run, monkeypatch) -> None:
    monkeypatch.chdir(run.parents[1])
    for argument, step in {"latest": 30, "emergency": 25, "best_previous": 20, "auto": 30}.items():
        assert json.loads(checkpoints("show", argument, "--json").out)["step"] == step


def test_show_skips_an_unreadable_latest(checkpoints, run) -> None:
    latest = run / "checkpoints" / "latest.pt"
    latest.write_bytes(b"")  # and with it, rolling_step_000030.pt, best_model.pt, …
    done = checkpoints("show", run, "--json")
    assert json.loads(done.out)["step"] == 30
    assert f"skipped {latest} cannot be used" in done.err
    assert checkpoints("show", latest).code == 1


def test_show_reports_a_missing_role(checkpoints, run, monkeypatch) -> None:
    monkeypatch.chdir(run.parents[1])
    next((run / "checkpoints").glob("emergency*")).unlink()
    done = checkpoints("show", "emergency")
    assert done.code == 1
    assert "there is no emergency checkpoint in outputs/gpt2_run" in done.err


def test_show_refuses_a_folder_with_several_runs(checkpoints, run) -> None:
    shutil.copytree(run, run.parent / "b")
    done = checkpoints("show", run.parent)
    assert (done.code, done.err) == (1, f"error: {run.parent} holds 2 runs: name one of them\n")


def test_show_without_checkpoints_exits_1(checkpoints, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"PK" + bytes(100))
    done = checkpoints("show", tmp_path / "x.pt")
    assert done.code == 1
    assert "x.pt cannot be used: it is not a checkpoint of gpt2ckpt: pass a file that" in done.err


def test_show_of_a_file_with_a_damaged_tensor(checkpoints, run) -> None:
    damage(run / "checkpoints" / "latest.pt")
    assert checkpoints("show", run / "checkpoints" / "latest.pt").code == 0
