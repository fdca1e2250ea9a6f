"""How a command ends: any error as one sentence with the contract's exit code.

Imports neither Hydra nor torch: `checkpoints list` takes less time than importing either.
"""

import atexit
import contextlib
import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

from gpt2ckpt import console
from gpt2ckpt.errors import ConfigError, UserError
from gpt2ckpt.openmp import set_wait_policy
from gpt2ckpt.signals.early import Interrupted, handle_signals_early

FULL_ERROR = "HYDRA_FULL_ERROR"
_exit_codes: list[int] = []  # the last one is that of this process; none if it is not ours to end


@contextlib.contextmanager
def reported_errors(*, tidies: bool = True) -> Iterator[None]:
    """End the process with one sentence and the contract's exit code on any error.

    A signal ends it, too: by an exception, so that temporary files go, unless `tidies` is false.
    """
    own_process()
    wants_trace = os.environ.get(FULL_ERROR) == "1"
    handler = handle_signals_early()
    handler.tidies = tidies
    set_wait_policy()
    logging.raiseExceptions = False  # a closed terminal or pipe costs lines, never the training
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        print("interrupted", file=sys.stderr)
        sys.exit(error.code if isinstance(error, SystemExit) else 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        _fail(str(error), error.exit_code, wants_trace)
    except OSError as error:
        _fail(f"{_refusal(error)} (HYDRA_FULL_ERROR=1 shows where it is used)", 1, wants_trace)
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("hydra", "omegaconf"):
            from gpt2ckpt.config.explain import explain

            _fail(explain(error), ConfigError.exit_code, wants_trace)
        reason = f"{type(error).__name__}: {error}"
        _fail(f"{reason} (HYDRA_FULL_ERROR=1 shows where)", 1, wants_trace)
    finally:
        handler.tidies = False
        _flush()
        _note_exit_code(sys.exc_info()[1])


def _refusal(error: OSError) -> str:
    """Return what an operating system refused, on which file, and what to do about it."""
    if not error.filename:
        return f"{type(error).__name__}: {error}"
    match error.errno:
        case errno.EACCES | errno.EPERM:
            remedy = ". ls -ld shows who may use it"
        case errno.ENOSPC | errno.EDQUOT:
            remedy = ". Free space on that disk"
        case errno.EROFS | errno.EIO:
            remedy = ". dmesg shows what is wrong with that disk"
        case _:
            remedy = ""
    return f"{error.filename}: {error.strerror}{remedy}"


def own_process() -> None:
    """Declare that this process runs one of our commands, or a job of it, and nothing else."""
    _exit_codes.append(0)


def skip_exit_hooks() -> None:
    """Let a process of ours end without the exit hooks of libraries: one of them would hang.

    The exit code stands, and logs are closed.
    """
    if _exit_codes:
        atexit.register(_leave)  # the hook that is registered last runs first


def _leave() -> None:
    logging.shutdown()
    console.drain()
    os._exit(_exit_codes[-1])


def _note_exit_code(error: BaseException | None) -> None:
    code = error.code if isinstance(error, SystemExit) else error and 1
    _exit_codes.append(code if isinstance(code, int) else int(code is not None))


def _fail(sentence: str, code: int, wants_trace: bool) -> NoReturn:
    if wants_trace:
        traceback.print_exc()
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(code)


def _flush() -> None:
    """Write out what was printed; a terminal or pipe that is gone must not change the exit code."""
    console.drain()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
