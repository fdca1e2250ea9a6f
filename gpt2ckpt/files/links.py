"""Symbolic links, which a run refuses to write through, and the identity of hard links."""

import os
from pathlib import Path

from gpt2ckpt.errors import InputError


def refuse_link(path: Path) -> None:
    """Raise InputError if `path`, which is about to be written, is a symbolic link."""
    if path.is_symlink():
        raise InputError(
            f"{path} is a symbolic link, and a run writes only inside its own directory: replace "
            "the link with the file or directory itself, or remove the link"
        )


def inode_of(info: os.stat_result) -> tuple[int, int]:
    """Return the identity of a file on this machine: all hard links to the file have the same."""
    return info.st_dev, info.st_ino
