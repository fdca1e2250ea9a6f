"""A fork server: commands start as forks of a process that has imported torch already.

Importing torch takes most of the time of a short run. A forked command is still a process of
its own, with its own working directory, environment, output and signals, and it ends as any other
interpreter does. Tests of what happens before or during the imports start a fresh interpreter.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TextIO

from gpt2ckpt.config.compose import compose_config
from gpt2ckpt.openmp import set_wait_policy

COMMANDS = ("train", "evaluate", "sample", "prepare", "checkpoints")
# What the commands import late, when they are sure to need it.
LATE = ("torch._dynamo", "gpt2ckpt.training.agreement", "gpt2ckpt.training.session")
HEADER = 8  # bytes: the length of a request


@dataclass(frozen=True)
class Request:
    """A command to start: see `start`."""

    program: str
    args: list[str]
    cwd: str
    environment: dict[str, str]
    new_session: bool


class Forked:
    """A command that was started by the server, with the methods of subprocess.Popen."""

    def __init__(self, status: int, output: Sequence[IO[str]]) -> None:
        self.returncode: int | None = None
        self._status = os.fdopen(status, "rb", buffering=0)
        self._output = output
        line = self._status.readline()
        if not line:
            raise RuntimeError("the fork server has ended; its own error is in pytest's output")
        self.pid = int(line)

    def poll(self) -> int | None:
        """Return the exit code, -N for signal N, or None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process for at most `timeout` seconds; return its exit code."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end of the process; return what it wrote to stdout and to stderr."""
        self.wait(timeout)
        for file in self._output:
            file.seek(0)
        out, err = (file.read() for file in self._output)
        return out, err

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """The process that forks, as long as this process lives."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._socket, other = socket.socketpair()
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(other.fileno())],
            **{"env": dict(environment), "pass_fds": [other.fileno()]},
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL},
        )
        other.close()
        atexit.register(self._close)

    def start(self, request: Request, out: int, err: int) -> int:
        """Start a command with its stdout and stderr; return the pipe that reports its end."""
        message = json.dumps(asdict(request)).encode()
        read, write = os.pipe()
        with self._lock:
            header = len(message).to_bytes(HEADER, "big")
            socket.send_fds(self._socket, [header], [out, err, write])
            self._socket.sendall(message)
        os.close(write)
        return read

    def _close(self) -> None:
        self._socket.close()
        self._process.wait()  # so that its processor time, and its children's, counts as ours


@functools.cache
def _server(preloaded: str, python_path: str) -> Server:
    own = {"LD_PRELOAD": preloaded, "PYTHONPATH": python_path}
    return Server({**os.environ, **own})


def start(
    program: str,
    args: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    *,
    output: int | None = None,
    new_session: bool = False,
) -> Forked:
    """Start a command as `python -m PROGRAM WORDS`, or `python PROGRAM WORDS` for a .py file.

    Args:
        environment: all of it. Its LD_PRELOAD and PYTHONPATH are those of the server as well.
        output: a descriptor for stdout and stderr, which are temporary files without it.
        new_session: whether the command leads a process group of its own.
    """
    server = _server(environment.get("LD_PRELOAD", ""), environment["PYTHONPATH"])
    request = Request(program, list(args), str(cwd), dict(environment), new_session)
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
    out, err = (file.fileno() if output is None else output for file in files)
    return Forked(server.start(request, out, err), files)


def _serve(connection: socket.socket) -> None:
    """Fork a process for every request, until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    waiting: list[int] = []
    while True:
        header, descriptors, _, _ = socket.recv_fds(connection, HEADER, 3)
        waiting = [pid for pid in waiting if os.waitpid(pid, os.WNOHANG)[0] == 0]
        if not header:
            return
        length = int.from_bytes(header, "big")
        request = Request(**json.loads(connection.recv(length, socket.MSG_WAITALL)))
        pid = os.fork()
        if pid == 0:
            connection.close()
            _wait_for_child(*descriptors)
            return _run(request)
        waiting.append(pid)
        for descriptor in descriptors:
            os.close(descriptor)


def _wait_for_child(out: int, err: int, status: int) -> None:
    """Fork again, and return in the child; report its process id and its exit code."""
    child = os.fork()
    if child == 0:
        os.dup2(out, 1)
        os.dup2(err, 2)
        for descriptor in (out, err, status):
            os.close(descriptor)
        return
    os.close(out)
    os.close(err)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # those of a group are for the command
    os.write(status, f"{child}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(BrokenPipeError):  # the parent has ended
        os.write(status, f"{code}\n".encode())
    os._exit(0)


def _run(request: Request) -> None:
    """Do what an interpreter does after its own start."""
    if request.new_session:
        os.setsid()
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The interpreter's own streams remember what the descriptors were before.
    sys.stdout = sys.__stdout__ = _stream(1, errors=sys.stdout.errors)
    sys.stderr = sys.__stderr__ = _stream(2, errors=sys.stderr.errors, buffering=1)
    sys.argv = [request.program, *request.args]
    if request.program.endswith(".py"):
        sys.path.insert(0, str(Path(request.program).parent))
        runpy.run_path(request.program, run_name="__main__")
    else:
        sys.path.insert(0, request.cwd)
        runpy.run_module(request.program, run_name="__main__", alter_sys=True)


def _stream(number: int, *, errors: str | None, buffering: int = -1) -> TextIO:
    return open(number, "w", buffering, errors=errors, closefd=False)


def _import_all() -> None:
    set_wait_policy()  # torch reads what it sets
    for name in COMMANDS:
        importlib.import_module(f"gpt2ckpt.{name}")
        del sys.modules[f"gpt2ckpt.{name}"]  # it runs as __main__
    for name in LATE:
        importlib.import_module(name)
    compose_config("train", [])  # the parsers of overrides keep what they have learned
    gc.collect()
    gc.freeze()  # else each process copies every page when it first collects


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file
    _import_all()
    _serve(socket.socket(fileno=int(sys.argv[1])))
