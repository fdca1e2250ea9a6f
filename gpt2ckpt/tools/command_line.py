"""The verbs of `gpt2ckpt.checkpoints`, and a parser whose errors name the nearest match."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from gpt2ckpt.errors import ConfigError, did_you_mean

PROGRAM = "python -m gpt2ckpt.checkpoints"
CUTOFF = 0.5  # similarity from which a word is suggested


@dataclass(frozen=True)
class Verb:
    """One verb: its help, its arguments, and its function.

    `examples` are arguments that follow the verb. `run` returns the exit code.
    """

    summary: str
    examples: tuple[str, ...]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError, with the nearest flag if one was misspelt."""
        hint = ""
        if message.startswith("unrecognized arguments: -"):
            word = message.split()[2].partition("=")[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            hint = did_you_mean(word, flags, cutoff=CUTOFF)
        raise ConfigError(f"{message}.{hint or ' --help lists all subcommands and flags.'}")


def call(verbs: Mapping[str, Verb], arguments: Sequence[str]) -> int:
    """Run the verb that a command line names; return the exit code.

    Raises:
        ConfigError: for an argument that cannot be used.
        SystemExit: with code 0, after help was printed.
    """
    if arguments and arguments[0] in verbs:
        verb = verbs[arguments[0]]
        parser = Parser(
            prog=f"{PROGRAM} {arguments[0]}",
            description=f"{verb.summary[:1].upper()}{verb.summary[1:]}.",
            epilog=_examples(f"{arguments[0]} {example}".rstrip() for example in verb.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_arguments(parser)
        return verb.run(parser.parse_intermixed_args(arguments[1:]))
    if arguments and not arguments[0].startswith("-"):
        hint = did_you_mean(arguments[0], verbs, cutoff=CUTOFF)
        raise ConfigError(f"there is no verb {arguments[0]}: {', '.join(verbs)}.{hint}")
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} VERB [arguments]",
        description="List, verify, repair, prune and export checkpoints.",
        epilog=_listed(verbs),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.parse_args(arguments)
    raise ConfigError(f"a verb is missing: {PROGRAM} {'|'.join(verbs)}")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the flag --json."""
    parser.add_argument("--json", action="store_true", help="for programs: JSON on one line")


def count(least: int) -> Callable[[str], int]:
    """Return an argument type: a whole number of at least `least`."""

    def parse(word: str) -> int:
        if not (word.isascii() and word.isdigit() and int(word) >= least):
            raise argparse.ArgumentTypeError(f"{word!r} is not a whole number of at least {least}")
        return int(word)

    return parse


def _listed(verbs: Mapping[str, Verb]) -> str:
    lines = [f"  {name:15} {verb.summary}" for name, verb in verbs.items()]
    hint = f"{PROGRAM} VERB --help shows the arguments of a verb, with examples."
    return "\n".join(["verbs:", *lines, "", hint])


def _examples(lines: Iterable[str]) -> str:
    return "\n".join(["examples:", *(f"  {PROGRAM} {line}" for line in lines)])
