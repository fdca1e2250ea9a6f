"""`python -m gpt2ckpt.checkpoints VERB`: look at checkpoints, check, mend and free them."""

import sys

from gpt2ckpt.application import reported_errors
from gpt2ckpt.tools import (
    diff,
    export,
    listing,
    log,
    prune,
    repair,
    resume_command,
    show,
    verify,
)
from gpt2ckpt.tools.command_line import call

VERBS = {
    "list": listing.VERB,
    "verify": verify.VERB,
    "show": show.VERB,
    "diff": diff.VERB,
    "resume-command": resume_command.VERB,
    "repair": repair.VERB,
    "prune": prune.VERB,
    "log": log.VERB,
    "export": export.VERB,
}


def main() -> None:
    """Entry point of the command; ends the process with the exit code of the verb."""
    with reported_errors():
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            code = call(VERBS, sys.argv[1:])
        finally:
            sys.stdout.flush()  # a closed pipe shows here, not when the interpreter ends
        sys.exit(code)


if __name__ == "__main__":
    main()
