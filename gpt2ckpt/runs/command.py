"""Commands for the user to copy: with the interpreter that has what they need."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def command(module: str, *words: str, anywhere: bool = False) -> str:
    """`python -m gpt2ckpt.MODULE WORDS`; the words are spelled for the shell already.

    Where `python` in this shell is another interpreter than the one that runs, as without its
    virtual environment activated, that one is named: briefly, or so that it is found `anywhere`.
    """
    return " ".join([_interpreter(anywhere=anywhere), "-m", f"gpt2ckpt.{module}", *words])


def _interpreter(*, anywhere: bool) -> str:
    found, running = shutil.which("python"), Path(sys.executable).absolute()
    if found and Path(found).absolute().parent == running.parent:
        return "python"
    near = not anywhere and running.is_relative_to(Path.cwd())
    return shlex.quote(os.path.relpath(running) if near else str(running))
