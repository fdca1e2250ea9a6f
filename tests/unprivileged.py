"""Commands for which file permissions count: root ignores them."""

import os
import shutil

import pytest


def unprivileged(command: list[str]) -> list[str]:
    """Return a command that runs `command` without root's right to read and write everything."""
    if os.geteuid() != 0:
        return command
    if shutil.which("setpriv") is None:
        pytest.skip("root ignores permissions, and there is no setpriv(1) to give that right up")
    rights = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *command]
