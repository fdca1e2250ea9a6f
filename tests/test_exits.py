"""An error of the operating system is reported with the file and what to do."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, "some/file: Permission denied. Check its permissions with ls -ld"),
        (errno.ENOSPC, "some/file: No space left on device. Free space on that disk"),
        (errno.EROFS, "some/file: Read-only file system. Check the disk with dmesg"),
        (errno.ENOTDIR, "some/file: Not a directory"),
    ],
)
def test_operating_system_error_names_the_file(number: int, expected: str) -> None:
    code = (
        "import os\n"
        "from gpt2ckpt.exits import reported_errors\n"
        "with reported_errors():\n"
        f"    raise OSError({number}, os.strerror({number}), 'some/file')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: {expected} (HYDRA_FULL_ERROR=1 shows where it is used)\n"
