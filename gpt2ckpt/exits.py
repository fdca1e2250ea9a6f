"""How every command ends: an error becomes one message and an exit code.

This module imports neither Hydra nor torch, which take longer than `checkpoints list`.
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
# The last one is the exit code of this process. Empty if gpt2ckpt runs inside a different program.
_exit_codes: list[int] = []


@contextlib.contextmanager
def reported_errors(*, tidies: bool = True) -> Iterator[None]:
    """End the process with one message and an exit code at any error in this context.

    If `tidies`, a stopping signal raises an exception, so that the command removes its temporary
    files. Otherwise, the signal ends the process at once.
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
        if is_from_hydra(error):
            from gpt2ckpt.config.explain import explain

            _fail(explain(error), ConfigError.exit_code, wants_trace)
        reason = f"{type(error).__name__}: {error}"
        _fail(f"{reason} (HYDRA_FULL_ERROR=1 shows where)", 1, wants_trace)
    finally:
        handler.tidies = False
        _flush()
        _note_exit_code(sys.exc_info()[1])


def is_from_hydra(error: Exception) -> bool:
    """Return whether an error is one of Hydra or OmegaConf, which concerns the config."""
    return type(error).__module__.partition(".")[0] in ("hydra", "omegaconf")


def _refusal(error: OSError) -> str:
    """Return which file the operating system refused, why, and what to do."""
    if not error.filename:
        return f"{type(error).__name__}: {error}"
    match error.errno:
        case errno.EACCES | errno.EPERM:
            remedy = ". Check its permissions with ls -ld"
        case errno.ENOSPC | errno.EDQUOT:
            remedy = ". Free space on that disk"
        case errno.EROFS | errno.EIO:
            remedy = ". Check the disk with dmesg"
        case _:
            remedy = ""
    return f"{error.filename}: {error.strerror}{remedy}"


def own_process() -> None:
    """Record that this process runs only a command of gpt2ckpt, or a job of a sweep."""
    _exit_codes.append(0)


def skip_exit_hooks() -> None:
    """Let this process end without the exit hooks of libraries, because one of them would hang.

    Logs are closed, and the exit code is kept.
    """
    if _exit_codes:
        atexit.register(_leave)  # the last registered hook runs first


def _leave() -> None:
    logging.shutdown()
    console.drain()
    os._exit(_exit_codes[-1])


def _note_exit_code(error: BaseException | None) -> None:
    code = error.code if isinstance(error, SystemExit) else error and 1
    _exit_codes.append(code if isinstance(code, int) else int(code is not None))


def _fail(message: str, code: int, wants_trace: bool) -> NoReturn:
    if wants_trace:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _flush() -> None:
    """Flush the output; a closed terminal or pipe must not change the exit code."""
    console.drain()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
