"""A character that the console cannot display is replaced, and no line is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PRINT = r"""
import os, sys
from gpt2ckpt.exits import reported_errors
from gpt2ckpt.errors import UserError
with reported_errors():
    print("optimizer.lr: 0.003 → 0.0001 … Größe 試験 ├─ \udcff")
    print("loss → 3", file=sys.stderr)
    if len(sys.argv) > 1:
        raise UserError("Größe → null")
"""


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", rb"optimizer.lr: 0.003 -> 0.0001 ... Gr\xf6\xdfe \u8a66\u9a13 |- \udcff"),
        ("ascii:strict", rb"optimizer.lr: 0.003 -> 0.0001 ... Gr\xf6\xdfe \u8a66\u9a13 |- \udcff"),
        ("latin-1", b"optimizer.lr: 0.003 -> 0.0001 ... Gr\xf6\xdfe " + rb"\u8a66\u9a13 |- \udcff"),
        ("cp1252", b"optimizer.lr: 0.003 -> 0.0001 \x85 Gr\xf6\xdfe " + rb"\u8a66\u9a13 |- \udcff"),
        (
            "cp850",
            b"optimizer.lr: 0.003 -> 0.0001 ... Gr\x94\xe1e " + rb"\u8a66\u9a13 " + b"\xc3\xc4",
        ),
        (
            "cp437",
            b"optimizer.lr: 0.003 -> 0.0001 ... Gr\x94\xe1e " + rb"\u8a66\u9a13 " + b"\xc3\xc4",
        ),
        ("utf-8", "optimizer.lr: 0.003 → 0.0001 … Größe 試験 ├─ ".encode() + rb"\udcff"),
    ],
)
def test_output_never_fails_on_the_console_encoding(encoding: str, expected: bytes) -> None:
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", PRINT]
    done = subprocess.run(command, env=env, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(expected)
    assert b"loss -> 3" in done.stderr or "loss → 3".encode() in done.stderr


def test_error_message_is_escaped_for_an_ascii_console() -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", PRINT, "fail"]
    done = subprocess.run(command, env=env, capture_output=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == rb"error: Gr\xf6\xdfe -> null"


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX", "PYTHONUTF8": "0"}])
def test_command_works_in_the_c_locale(tmp_path: Path, locale: dict[str, str]) -> None:
    env = {**os.environ, "PYTHONCOERCECLOCALE": "0", **locale}
    command = [sys.executable, "-m", "gpt2ckpt.checkpoints", "list", "Größe → null"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(b"error: ")
