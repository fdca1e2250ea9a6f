"""Runs commands without root's privilege to ignore file permissions."""

import os
import shutil

import pytest


def unprivileged(command: list[str]) -> list[str]:
    """Return a command that runs `command` without root's right to read and write everything."""
    if os.geteuid() != 0:
        return command
    if shutil.which("setpriv") is None:
        pytest.skip("root ignores permissions, and setpriv(1) is not available")
    rights = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *command]
