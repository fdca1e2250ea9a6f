"""`python -m gpt2ckpt.checkpoints VERB`: list, verify, repair, prune and export checkpoints."""

from gpt2ckpt.signals.early import handle_signals_early

if __name__ == "__main__":
    handle_signals_early()  # before the imports: they take seconds

import sys
from collections.abc import Iterator, Mapping
from importlib import import_module

from gpt2ckpt.exits import reported_errors
from gpt2ckpt.tools.command_line import Verb, call

MODULES = {
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


class Verbs(Mapping[str, Verb]):
    """The verbs by name; a verb's module is imported when the verb is looked up."""

    def __getitem__(self, name: str) -> Verb:
        verb: Verb = import_module(f"gpt2ckpt.tools.{MODULES[name]}").VERB
        return verb

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


VERBS = Verbs()


def main() -> None:
    """Run the command; end the process with the exit code of the verb."""
    with reported_errors():
        try:
            code = call(VERBS, sys.argv[1:])
        finally:
            sys.stdout.flush()  # raises here for a closed pipe, not when the interpreter ends
        sys.exit(code)


if __name__ == "__main__":
    main()
