"""File systems of their own for the tests that need them."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def _mount(arguments: list[str], folder: Path) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if not shutil.which("mount"):
        pytest.skip("there is no mount(8) here")
    yield from _mount(["-t", "tmpfs", "-o", "size=1m", "tmpfs"], tmp_path / "tiny_disk")


@pytest.fixture
def disk_without_links(tmp_path: Path) -> Iterator[Path]:
    """A vfat file system of 8 MiB: it knows no hard links."""
    if not (shutil.which("mkfs.vfat") and shutil.which("mount")):
        pytest.skip("there is no mkfs.vfat here")
    image = tmp_path / "vfat.img"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.vfat", str(image)], check=True, capture_output=True)
    yield from _mount(["-t", "vfat", "-o", "loop", str(image)], tmp_path / "vfat")
