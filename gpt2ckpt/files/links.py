"""Links in a run directory: none may lead a write out of it."""

from pathlib import Path

from gpt2ckpt.errors import InputError


def refuse_link(path: Path) -> None:
    """Raise InputError if a name that is written to is a symbolic link, wherever it leads."""
    if path.is_symlink():
        raise InputError(
            f"{path} is a symbolic link, and a run writes nothing to another place: put the file "
            "or folder itself there, or remove the link"
        )
