"""The wheel is complete and works without the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from commands import ROOT, environment

pytest.importorskip("build", reason="the extra dev brings it")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the content of a wheel built from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("gpt2ckpt", "conf", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-r", str(ROOT / name), str(source / name)], check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "out"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = (source / "out").glob("*.whl")
    target = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(target)
    return target


def test_wheel_contains_every_module_and_config(unpacked: Path) -> None:
    modules = {path.relative_to(ROOT) for path in (ROOT / "gpt2ckpt").rglob("*.py")}
    modules = {path for path in modules if "conf" not in path.parts[1:-1]}
    configs = {
        Path("gpt2ckpt") / path.relative_to(ROOT) for path in (ROOT / "conf").rglob("*.yaml")
    }
    there = {path.relative_to(unpacked) for path in unpacked.rglob("*") if path.is_file()}
    assert len(configs) > 20
    assert (modules | configs) - there == set()
    assert Path("gpt2ckpt/py.typed") in there


def test_wheel_contains_the_license_named_in_its_metadata(unpacked: Path) -> None:
    [folder] = unpacked.glob("*.dist-info")
    metadata = (folder / "METADATA").read_text().splitlines()
    assert "License-Expression: MIT" in metadata
    assert "License-File: LICENSE" in metadata
    assert (folder / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_wheel_declares_the_console_scripts(unpacked: Path) -> None:
    [points] = unpacked.glob("*.dist-info/entry_points.txt")
    for name in ("train", "evaluate", "sample", "prepare", "drill"):
        assert f"gpt2ckpt-{name} = gpt2ckpt.scripts:{name}" in points.read_text()


def test_wheel_composes_its_configs_in_another_directory(unpacked: Path, tmp_path: Path) -> None:
    env = {**environment(), "PYTHONPATH": str(unpacked), "PYTHONSAFEPATH": "1"}
    where = "import gpt2ckpt.config.compose as c; print(c.__file__, c.conf_directory())"
    for command in (["-c", where], ["-m", "gpt2ckpt.train", "--cfg", "job", "experiment=quick"]):
        done = subprocess.run(
            *([sys.executable, *command],),
            **{"cwd": tmp_path, "env": env, "capture_output": True, "text": True},
        )
        assert done.returncode == 0, done.stderr
        if command[0] == "-c":
            module, conf = done.stdout.split()
            assert Path(module).is_relative_to(unpacked), os.environ.get("PYTHONPATH")
            assert Path(conf) == unpacked / "gpt2ckpt" / "conf"
        else:
            assert "name: quick" in done.stdout
    assert list(tmp_path.iterdir()) == []
