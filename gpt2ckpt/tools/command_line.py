"""Parses the command line of `gpt2ckpt.checkpoints`; an error names the nearest match."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from gpt2ckpt.errors import ConfigError, did_you_mean

PROGRAM = "python -m gpt2ckpt.checkpoints"
REQUIRED = "the following arguments are required: "  # how argparse begins a message
CUTOFF = 0.5  # the least similarity (difflib's ratio) of a suggestion


@dataclass(frozen=True)
class Subcommand:
    """A subcommand of `gpt2ckpt.checkpoints`.

    Attributes:
        summary: the line for --help.
        examples: for --help, the arguments that follow the name of the subcommand.
        add_arguments: adds the arguments of the subcommand to a parser.
        run: takes the parsed arguments, and returns the exit code.
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
            typed = message.split()[2].partition("=")[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            names = [flag.lstrip("-") for flag in flags]  # the dashes are not a similarity
            hint = did_you_mean(typed.lstrip("-"), names, cutoff=CUTOFF, start="--")
        elif message.startswith(REQUIRED):
            missing = message.removeprefix(REQUIRED).split(", ")
            message = "; ".join(f"{name} is missing: pass {self._help(name)}" for name in missing)
        raise ConfigError(f"{message}.{hint or f' {self.prog} --help lists all arguments.'}")

    def _help(self, name: str) -> str:
        """Return the help of the argument or flag `name`."""
        found = (a.help for a in self._actions if name in (a.metavar, *a.option_strings))
        return next(found, None) or name


def call(modules: Mapping[str, str], arguments: Sequence[str]) -> int:
    """Run the subcommand that a command line names; return the exit code.

    Args:
        modules: the module of each subcommand in gpt2ckpt.tools. Only those needed are imported.
        arguments: the command line after the name of the command.

    Raises:
        ConfigError: for an argument that cannot be used.
        SystemExit: with code 0, after help was printed.
    """
    if arguments and arguments[0] in modules:
        subcommand = _load(modules[arguments[0]])
        parser = Parser(
            prog=f"{PROGRAM} {arguments[0]}",
            description=f"{subcommand.summary[:1].upper()}{subcommand.summary[1:]}.",
            epilog=_examples(arguments[0], subcommand.examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        subcommand.add_arguments(parser)
        return subcommand.run(parser.parse_intermixed_args(arguments[1:]))
    if arguments and not arguments[0].startswith("-"):
        hint = did_you_mean(arguments[0], modules, cutoff=CUTOFF)
        raise ConfigError(
            f"there is no subcommand {arguments[0]}; the subcommands are "
            f"{', '.join(modules)}.{hint}"
        )
    parser = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} SUBCOMMAND [arguments]",
        description="List, verify, repair, prune and export checkpoints.",
        epilog=_listed(modules),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.parse_args(arguments)
    raise ConfigError(f"the subcommand is missing: write {PROGRAM} {'|'.join(modules)}")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the flag --json."""
    parser.add_argument("--json", action="store_true", help="for programs: JSON on one line")


def count(least: int) -> Callable[[str], int]:
    """Return an argument type: a whole number of at least `least`."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


def _load(module: str) -> Subcommand:
    subcommand: Subcommand = import_module(f"gpt2ckpt.tools.{module}").SUBCOMMAND
    return subcommand


def _listed(modules: Mapping[str, str]) -> str:
    lines = [f"  {name:15} {_load(module).summary}" for name, module in modules.items()]
    hint = f"{PROGRAM} SUBCOMMAND --help shows the arguments of a subcommand, with examples."
    return "\n".join(["subcommands:", *lines, "", hint])


def _examples(name: str, examples: Iterable[str]) -> str:
    lines = (f"  {PROGRAM} {name} {example}".rstrip() for example in examples)
    return "\n".join(["examples:", *lines])
