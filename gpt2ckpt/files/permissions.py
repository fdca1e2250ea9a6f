"""Directories that this user may not read: their content is unknown, so they are never "empty"."""

import errno
import os
from pathlib import Path

from gpt2ckpt.errors import InputError


def access_error(folder: Path) -> OSError | None:
    """Return the error of reading a directory; None if it can be read or does not exist."""
    try:
        os.scandir(folder).close()
        os.stat(f"{folder}/.")  # noqa: PTH116 (Path drops the dot, which tests the right to enter)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return error
    return None


def require_access(folder: Path) -> None:
    """Raise InputError if a directory exists and this user may not read it."""
    if error := access_error(folder):
        raise unreadable_message(folder, error) from error


def unreadable_message(path: Path | str, error: OSError) -> InputError:
    """Return the InputError for a path that cannot be read."""
    is_forbidden = error.errno in (errno.EACCES, errno.EPERM)
    remedy = "ls -ld shows who may read it" if is_forbidden else "check the path and its disk"
    return InputError(f"{path} cannot be read ({error.strerror or error}): {remedy}")
