"""Tests of signals before training, when there is nothing to save."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CODES = [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)]
AT_ONCE = """
import os, signal, sys
from gpt2ckpt.signals.early import handle_signals_early
handle_signals_early()
print("begun")
class Library:
    def __del__(self):  # an exception raised in here would be printed and forgotten
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
Library()
print("still here")
"""


def run(script: str, *arguments: str, **more: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", script, *arguments]
    more.setdefault("preexec_fn", lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))  # nohup
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(("name", "code"), CODES)
def test_signal_ends_the_process_where_an_exception_would_be_swallowed(
    name: str, code: int
) -> None:
    done = run(AT_ONCE, name)
    assert done.returncode == code
    assert done.stdout == "begun\n"
    assert done.stderr == "interrupted: there was nothing to save\n"


TIDY = """
import os, signal, sys, time
from gpt2ckpt.exits import reported_errors
with reported_errors():
    try:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(60)
    finally:
        print("tidied up", flush=True)
        if len(sys.argv) > 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
"""


@pytest.mark.parametrize(("name", "code"), CODES)
def test_signal_lets_a_command_clean_up(name: str, code: int) -> None:
    done = run(TIDY, name)
    assert (done.returncode, done.stdout, done.stderr) == (code, "tidied up\n", "interrupted\n")


def test_second_signal_ends_the_clean_up() -> None:
    assert run(TIDY, "SIGINT", "twice").returncode == 143


SAVE = """
import os, signal
from gpt2ckpt.signals.early import handle_signals_early
from gpt2ckpt.signals.training import TrainingSignals
handle_signals_early()
os.kill(os.getpid(), signal.SIGUSR1)
with TrainingSignals() as signals:
    print(signals.take_save_request(), signals.take_save_request(), signals.stop)
"""


def test_save_requested_before_training_is_made_during_training() -> None:
    """Without a handler, SIGUSR1 would end the process."""
    assert run(SAVE).stdout == "True False None\n"


LAUNCHER = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: print("requeued", flush=True))
from gpt2ckpt.signals.early import handle_signals_early
from gpt2ckpt.signals.training import TrainingSignals
handle_signals_early()
if sys.argv[1] == "training":
    with TrainingSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        print("saved", flush=True)
else:
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_handler_of_the_launcher_is_called_after_the_save() -> None:
    assert run(LAUNCHER, "training").stdout == "saved\nrequeued\n"
    done = run(LAUNCHER, "start")
    assert (done.returncode, done.stdout) == (143, "requeued\n")


END = """
import atexit, os, signal, sys
from gpt2ckpt.signals.early import handle_signals_early
class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
sys.last_thing = Last()  # goes when the interpreter takes its modules apart
handle_signals_early()
sys.exit(7)
"""


def test_signal_at_exit_does_not_change_the_exit_code() -> None:
    done = run(END)
    assert (done.returncode, done.stderr) == (7, "")


IGNORED = """
import os, signal
from gpt2ckpt.signals.early import handle_signals_early
from gpt2ckpt.signals.training import TrainingSignals
handle_signals_early()
os.kill(os.getpid(), signal.SIGHUP)
with TrainingSignals() as signals:
    os.kill(os.getpid(), signal.SIGHUP)
    print(signals.stop)
"""


def test_sighup_stays_ignored_under_nohup() -> None:
    done = run(IGNORED, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert (done.returncode, done.stdout) == (0, "None\n")


def test_import_of_a_command_installs_no_handler() -> None:
    script = "import gpt2ckpt.train, signal; print(signal.getsignal(signal.SIGTERM).name)"
    assert run(script).stdout == "SIG_DFL\n"


def test_commands_handle_signals_before_slow_imports() -> None:
    """As modules and as console scripts."""
    import gpt2ckpt

    for name in ("train", "evaluate", "sample", "prepare", "checkpoints", "drill"):
        text = (Path(gpt2ckpt.__file__).parent / f"{name}.py").read_text()
        first = text.index("    handle_signals_early()")
        imports = [
            line for line in text[:first].splitlines() if line.startswith(("from", "import"))
        ]
        assert len(imports) == 1 and "gpt2ckpt.signals.early" in imports[0], name
    script = (
        "import signal, gpt2ckpt.scripts as scripts\n"
        "scripts.import_module = lambda _: exit(type(signal.getsignal(signal.SIGTERM)).__name__)\n"
        "scripts.train()"
    )
    assert run(script).stderr == "EarlySignals\n"
    slow = (
        "import sys, gpt2ckpt.scripts; print([m for m in ('torch', 'hydra') if m in sys.modules])"
    )
    assert run(slow).stdout == "[]\n"


CLOSED = """
import os, sys, tempfile
from gpt2ckpt.exits import reported_errors
from gpt2ckpt.errors import ConfigError
with reported_errors():
    with tempfile.TemporaryFile() as file:
        print("to nobody", flush=True)
        print("to nobody", file=sys.stderr, flush=True)
        os.write(2, b"a library's own text")
        file.seek(0)
        assert not file.read(), "it was written into a file"
    if len(sys.argv) > 1:
        raise ConfigError("wrong")
"""


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_closed_streams_change_neither_files_nor_the_exit_code(closed: list[int]) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    for arguments, code in ([], 0), (["wrong"], 2):
        done = subprocess.run(
            [sys.executable, "-c", CLOSED, *arguments],
            **{"stderr": subprocess.PIPE, "text": True, "timeout": 60, "preexec_fn": close},
        )
        assert done.returncode == code
        assert "Traceback" not in done.stderr
