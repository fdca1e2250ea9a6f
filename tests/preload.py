"""Makes system calls of a command fail or hang, by the libraries faultfs.c and more_calls.c."""

import atexit
import errno
import functools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("more_calls.c")


@dataclass(frozen=True)
class Faults:
    """A preloaded library and the file that lists its faults."""

    library: Path
    list: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "LD_PRELOAD": str(self.library), "FAULTS": str(self.list)}

    def set(self, *faults: tuple[str, int, str]) -> None:
        """Replace the faults: system call, error number (or -seconds to hang), path pattern."""
        lines = "".join(f"{call} {what} {pattern}\n" for call, what, pattern in faults)
        beside = self.list.with_suffix(".new")
        beside.write_text(lines)
        beside.replace(self.list)


def build(folder: Path) -> Faults:
    """Return no faults yet, with their list in `folder`. Skips where that cannot be done."""
    faults = Faults(_library(), folder / "faults.txt")
    faults.set()
    return faults


@functools.cache
def _library() -> Path:
    """Compile the library, once in a process."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or os.uname().sysname != "Linux":
        pytest.skip("injecting faults needs Linux and a C compiler (gcc)")
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    library = folder / "faultfs.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the fault library cannot be compiled: {done.stderr.strip()}")
    return library


EIO, EROFS, EPERM, EINVAL = errno.EIO, errno.EROFS, errno.EPERM, errno.EINVAL
