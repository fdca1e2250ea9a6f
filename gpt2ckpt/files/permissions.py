"""Folders that are there, and that this user cannot look into.

What such a folder holds is not known: to take it for empty would be wrong.
"""

import errno
import os
from pathlib import Path

from gpt2ckpt.errors import InputError


def access_error(folder: Path) -> OSError | None:
    """Return why this user cannot look into a folder; None if it can, or if there is none."""
    try:
        os.scandir(folder).close()
        os.stat(f"{folder}/.")  # noqa: PTH116 (Path drops the dot, which asks for the right to enter)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return error
    return None


def require_access(folder: Path) -> None:
    """Raise InputError if a folder is there, and this user cannot look into it."""
    if error := access_error(folder):
        raise unreadable_message(folder, error) from error


def unreadable_message(path: Path | str, error: OSError) -> InputError:
    """Return the error to raise where a path cannot be read."""
    is_forbidden = error.errno in (errno.EACCES, errno.EPERM)
    remedy = "ls -ld shows who may read it" if is_forbidden else "mount or mend it first"
    return InputError(f"{path} cannot be read ({error.strerror or error}): {remedy}")
