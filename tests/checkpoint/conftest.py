"""Fixtures that mount a separate file system for the tests that need one."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_disks import mounted


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    yield from mounted(["-t", "tmpfs", "-o", "size=1m", "tmpfs"], tmp_path / "tiny_disk")


@pytest.fixture
def disk_without_links(tmp_path: Path) -> Iterator[Path]:
    """A vfat file system of 8 MiB: it knows no hard links."""
    if not (shutil.which("mkfs.vfat") and shutil.which("mount")):
        pytest.skip("there is no mkfs.vfat here")
    image = tmp_path / "vfat.img"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.vfat", str(image)], check=True, capture_output=True)
    yield from mounted(["-t", "vfat", "-o", "loop", str(image)], tmp_path / "vfat")
