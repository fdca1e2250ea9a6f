"""Errors that a command prints as one message; each class has an exit code."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A problem that the user can solve: the message says what is wrong, where, and what to do."""

    exit_code = 1

    def __str__(self) -> str:
        """Return the message with control characters, such as those of a file name, escaped."""
        return "".join(map(_visible, super().__str__()))


class ConfigError(UserError):
    """A configuration, override or command-line argument that cannot be used."""

    exit_code = 2


class InputError(UserError):
    """A file, directory or data set that is missing or cannot be used."""


class LockedError(InputError):
    """A run directory that another process trains in."""


class CheckpointError(InputError):
    """A checkpoint that is missing, incomplete or damaged, or that does not fit the model."""


def nearest(typed: str, choices: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return the choice most similar to `typed`; empty if none is similar.

    `cutoff` is the least similarity, from 0 to 1 (difflib's ratio).
    """
    return next(iter(difflib.get_close_matches(typed, list(choices), n=1, cutoff=cutoff)), "")


def did_you_mean(
    typed: str, choices: Iterable[str], *, cutoff: float = 0.6, start: str = ""
) -> str:
    """Return " Did you mean …?" with the choice nearest to `typed`; empty if none is similar.

    `start` is a text to put before the choice.
    """
    found = nearest(typed, choices, cutoff=cutoff)
    return f" Did you mean {start}{found}?" if found else ""


def _visible(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]
