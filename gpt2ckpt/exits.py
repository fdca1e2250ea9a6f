"""How a command ends: any error as one sentence with the contract's exit code.

Imports neither Hydra nor torch: `checkpoints list` takes less time than importing either.
"""

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import NoReturn

from gpt2ckpt.errors import ConfigError, UserError
from gpt2ckpt.training.interrupts import exit_at_once
from gpt2ckpt.training.waiting import wait_briefly

FULL_ERROR = "HYDRA_FULL_ERROR"


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """End the process with one sentence and the contract's exit code on any error."""
    wants_trace = os.environ.get(FULL_ERROR) == "1"
    signal.signal(signal.SIGTERM, exit_at_once)
    wait_briefly()
    logging.raiseExceptions = False  # a closed terminal or pipe costs lines, never the training
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted: there was nothing to save", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        _fail(str(error), error.exit_code, wants_trace)
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("hydra", "omegaconf"):
            from gpt2ckpt.config.compose import explain

            _fail(explain(error), ConfigError.exit_code, wants_trace)
        reason = f"{type(error).__name__}: {error}"
        _fail(f"{reason} (HYDRA_FULL_ERROR=1 shows where)", 1, wants_trace)


def _fail(sentence: str, code: int, wants_trace: bool) -> NoReturn:
    if wants_trace:
        traceback.print_exc()
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(code)
