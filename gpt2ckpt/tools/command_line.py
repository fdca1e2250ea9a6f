"""What a verb is, and a command line whose errors name the nearest right word."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from gpt2ckpt.errors import ConfigError, did_you_mean

PROGRAM = "python -m gpt2ckpt.checkpoints"
CUTOFF = 0.5  # how much like a right word a wrong one must be


@dataclass(frozen=True)
class Verb:
    """One verb: what its help says, the arguments it takes, and what it does.

    `examples` are words after the program's name. `run` returns the exit code.
    """

    summary: str
    examples: tuple[str, ...]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Refuse a command line, with the nearest flag where one was misspelt."""
        hint = ""
        if message.startswith("unrecognized arguments: -"):
            word = message.split()[2].partition("=")[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            hint = did_you_mean(word, flags, cutoff=CUTOFF)
        raise ConfigError(f"{message}.{hint or ' --help lists all verbs and flags.'}")


def call(verbs: Mapping[str, Verb], words: Sequence[str]) -> int:
    """Run the verb that `words` begin with; returns the exit code.

    Raises ConfigError for a word that cannot be used, SystemExit(0) once help has been printed.
    """
    if words and words[0] in verbs:
        verb = verbs[words[0]]
        parser = Parser(
            prog=f"{PROGRAM} {words[0]}",
            description=f"{verb.summary[:1].upper()}{verb.summary[1:]}.",
            epilog=_examples(f"{words[0]} {example}".rstrip() for example in verb.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_arguments(parser)
        return verb.run(parser.parse_intermixed_args(words[1:]))
    if words and not words[0].startswith("-"):
        hint = did_you_mean(words[0], verbs, cutoff=CUTOFF)
        raise ConfigError(f"there is no verb {words[0]}: {', '.join(verbs)}.{hint}")
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} VERB [words]",
        description="Looks at checkpoints, checks, mends and frees them.",
        epilog=_listed(verbs),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.parse_args(words)
    raise ConfigError(f"say what to do: {PROGRAM} {'|'.join(verbs)}")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The flag --json."""
    parser.add_argument("--json", action="store_true", help="for programs: JSON on one line")


def count(least: int) -> Callable[[str], int]:
    """A type of argument: a whole number of at least `least`."""

    def parse(word: str) -> int:
        if not (word.isascii() and word.isdigit() and int(word) >= least):
            raise argparse.ArgumentTypeError(f"{word!r} is not a whole number of at least {least}")
        return int(word)

    return parse


def _listed(verbs: Mapping[str, Verb]) -> str:
    lines = [f"  {name:15} {verb.summary}" for name, verb in verbs.items()]
    hint = f"{PROGRAM} VERB --help shows the words of one, with examples."
    return "\n".join(["verbs:", *lines, "", hint])


def _examples(lines: Iterable[str]) -> str:
    return "\n".join(["examples:", *(f"  {PROGRAM} {line}" for line in lines)])
