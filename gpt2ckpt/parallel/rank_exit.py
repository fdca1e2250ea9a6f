"""Ends a rank: one rank prints the error message, and all ranks have the same exit code."""

import atexit
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from gpt2ckpt.errors import UserError
from gpt2ckpt.parallel.process_group import DistributedGroup, ProcessGroup, SingleProcess
from gpt2ckpt.parallel.ranks import read_ranks
from gpt2ckpt.signals.early import ignore_further_signals


@contextlib.contextmanager
def exit_without_teardown() -> Iterator[None]:
    """End a rank without destroying its process group. This is the outermost context of a command.

    Observed with PyTorch 2.13: the destructor of a gloo group holds the GIL while it joins the
    group's threads. If one of the threads waits for the GIL, the process hangs.
    """
    code: object = 0
    try:
        yield
    except SystemExit as end:
        code = end.code
        if read_ranks(os.environ) is None:
            raise
    if read_ranks(os.environ) is not None:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


@contextlib.contextmanager
def open_process_group() -> Iterator[ProcessGroup]:
    """Yield the process group of this process, and report its exit to the other ranks.

    The first rank that detects an error prints the error message. The other ranks end silently with
    the same exit code.
    """
    ranks = read_ranks(os.environ)
    if ranks is None:
        yield SingleProcess()
        return
    if not ranks.is_first:
        _silence_output()
    group = DistributedGroup(ranks)
    try:
        yield group
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        earlier = group.report_exit(code)
        raise SystemExit(code if earlier is None else earlier) from end
    except KeyboardInterrupt as interrupt:
        if group.report_exit(130) is None:
            raise
        raise SystemExit(130) from interrupt
    except Exception as error:
        _report_error(group, error)
    else:
        group.report_exit(0)
    finally:
        ignore_further_signals()  # torchrun signals all ranks as soon as one has ended


def _report_error(group: DistributedGroup, error: Exception) -> None:
    cause = group.explain_error(error)
    reason = str(cause) if isinstance(cause, UserError) else f"{type(cause).__name__}: {cause}"
    code = cause.exit_code if isinstance(cause, UserError) else 1
    if (earlier := group.report_exit(code, reason)) is not None:
        raise SystemExit(earlier or 1) from error
    if group.is_first or cause is not error:
        raise cause
    named = UserError(f"rank {group.rank}: {reason}")
    named.exit_code = code
    raise named from error


def _silence_output() -> None:
    """Turn off all output but errors on ranks other than the first."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # Left open until the process ends. UTF-8 can encode every character.
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
