"""Build commands for the user to copy, with the interpreter that has the package."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from gpt2ckpt.config.compose import in_shell
from gpt2ckpt.runs.plugins import named_plugins, plugins_override


def command(module: str, *arguments: str, anywhere: bool = False) -> str:
    """Return `python -m gpt2ckpt.MODULE ARGUMENTS`, to be copied into a shell.

    The command names the running interpreter by its path if `python` in the shell is a different
    one, because the virtual environment is not activated.

    Args:
        module: The name of the module.
        arguments: Its arguments, already quoted for the shell.
        anywhere: Whether the command must work in any directory: the path is then absolute.
    """
    return " ".join([_interpreter(anywhere=anywhere), "-m", f"gpt2ckpt.{module}", *arguments])


def with_plugins(*arguments: str) -> list[str]:
    """Return arguments, quoted for the shell, with the plugins of this process first."""
    plugins = [in_shell(plugins_override([]))] if named_plugins() else []
    return [*plugins, *arguments]


def _interpreter(*, anywhere: bool) -> str:
    found, running = shutil.which("python"), Path(sys.executable).absolute()
    if found and Path(found).absolute().parent == running.parent:
        return "python"
    near = not anywhere and running.is_relative_to(Path.cwd())
    return shlex.quote(os.path.relpath(running) if near else str(running))
