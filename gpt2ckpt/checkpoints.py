"""`python -m gpt2ckpt.checkpoints SUBCOMMAND`: list, verify, repair and export checkpoints."""

from gpt2ckpt.signals.early import handle_signals_early

if __name__ == "__main__":
    handle_signals_early()  # before the imports: they take seconds

import sys

from gpt2ckpt.exits import reported_errors
from gpt2ckpt.tools.command_line import call

SUBCOMMANDS = {  # with the module of each in gpt2ckpt.tools
    "list": "listing",
    "verify": "verify",
    "show": "show",
    "diff": "diff",
    "resume-command": "resume_command",
    "repair": "repair",
    "prune": "prune",
    "log": "log",
    "export": "export",
}


def main() -> None:
    """Run a subcommand, and end the process with its exit code."""
    with reported_errors():
        try:
            code = call(SUBCOMMANDS, sys.argv[1:])
        finally:
            sys.stdout.flush()  # if the pipe is closed, fail here and not when Python ends
        sys.exit(code)


if __name__ == "__main__":
    main()
