"""The file system checks, with correct calls and with calls that LD_PRELOAD makes fail."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpt2ckpt.recovery_drill.filesystem_checks import examine

ASK = """
import json, sys
from pathlib import Path
from gpt2ckpt.recovery_drill.filesystem_checks import examine
found = examine(Path(sys.argv[1]), 4 << 20)
print(json.dumps([found.has_links, {check.operation: check.problem for check in found.problems}]))
"""


def test_good_file_system_has_no_problems(tmp_path: Path) -> None:
    found = examine(tmp_path, 1 << 20)
    assert found.problems == [] and len(found.checks) == 7
    assert found.has_links and found.kind != "?"
    assert found.write_speed > 0 and found.read_speed > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "check", "problem"),
    [
        ("fsync fails", "fsync of the folder", "Input/output error"),
        ("fsync fails", "write, fsync, read back", "Input/output error"),
        ("link fails", "second name of a file", "Input/output error"),
        ("rename does nothing", "rename over a file", "No such file or directory"),
        ("flock does nothing", "lock of a live run", "a locked run is reported as not locked"),
        (
            "write drops",
            "write, fsync, read back",
            "the bytes read back differ from the bytes written",
        ),
    ],
)
def test_faulty_call_is_reported(
    faulty_disk: Path, tmp_path: Path, fault: str, check: str, problem: str
) -> None:
    _, problems = ask(faulty_disk, tmp_path, fault)
    assert problems[check] == problem
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_file_system_without_hard_links_is_fit(faulty_disk: Path, tmp_path: Path) -> None:
    assert ask(faulty_disk, tmp_path, "no links") == [False, {}]


def ask(library: Path, folder: Path, fault: str) -> Any:
    environment = {**os.environ, "LD_PRELOAD": str(library), "FAULT": fault}
    command = [sys.executable, "-c", ASK, str(folder)]
    return json.loads(subprocess.check_output(command, env=environment, timeout=120))
