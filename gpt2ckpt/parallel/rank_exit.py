"""How one rank of several ends: silently, or as the one that tells the user why all of them do."""

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
    """End a rank without taking its process group apart; to be entered before all else.

    Seen with PyTorch 2.13: the destructor of a gloo group waits for the group's threads with the
    interpreter's lock in its hand, and one of them may be waiting for that lock.
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
    """This process's place among the ranks; how it ends is told to the others.

    Of an error one rank tells the user, the one that met it first; the others are silent, and all
    have the same exit code.
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
    told = UserError(f"rank {group.rank}: {reason}")
    told.exit_code = code
    raise told from error


def _silence_output() -> None:
    """Only errors are shown of the other ranks: everything else is said once, by the first."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    # Open until the process ends; in UTF-8, which has every character.
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
