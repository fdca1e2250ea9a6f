"""Real file systems for tests: created in an image file, mounted, and removed at the end."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MAKERS = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q"),
    "exfat": ("mkfs.exfat",),
}
MEGABYTES = {"ext4": 40, "xfs": 320, "btrfs": 120, "exfat": 64}  # XFS wants 300


def mounted(arguments: list[str], folder: Path) -> Iterator[Path]:
    """Create `folder` and mount a file system on it; skip the test if that is not permitted."""
    if not shutil.which("mount"):
        pytest.skip("there is no mount(8) here")
    folder.mkdir(parents=True)
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting needs root (and a loop device): {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def formatted(kind: str, folder: Path) -> Iterator[Path]:
    """A small file system of one of the MAKERS, or a tmpfs of 40 MiB."""
    if kind == "tmpfs":
        yield from mounted(["-t", "tmpfs", "-o", "size=40m", "tmpfs"], folder)
        return
    image = make_image(kind, folder.with_name(f"{folder.name}.{kind}"))
    helper = ["-t", "exfat-fuse"] if kind == "exfat" else []
    yield from mounted([*helper, "-o", "loop", str(image)], folder)


def make_image(kind: str, image: Path, *options: str) -> Path:
    """An empty file system in a file."""
    if not shutil.which(MAKERS[kind][0]):
        pytest.skip(f"there is no {MAKERS[kind][0]} here: install the tools of {kind}")
    with image.open("wb") as file:
        file.truncate(MEGABYTES[kind] << 20)
    made = subprocess.run([*MAKERS[kind], *options, str(image)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return image
