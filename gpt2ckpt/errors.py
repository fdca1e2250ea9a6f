"""The errors that a user sees as one sentence; each carries the exit code of the command."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can put right: the message says what, where, and how."""

    exit_code = 1

    def __str__(self) -> str:
        """The message. What a file may hold to move the cursor or break the line is escaped."""
        return "".join(map(_visible, super().__str__()))


class ConfigError(UserError):
    """A configuration, override or command-line word that cannot be used."""

    exit_code = 2


class InputError(UserError):
    """A file, directory or data set that is missing or cannot be used."""


class LockedError(InputError):
    """A run directory in which another process trains."""


class CheckpointError(InputError):
    """A checkpoint that is missing, incomplete, damaged or of another shape."""


def did_you_mean(word: str, choices: Iterable[str], *, cutoff: float = 0.6, start: str = "") -> str:
    """A sentence that names the choice most like `word`, after `start`; empty if none is."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)
    return f" Did you mean {start}{close[0]}?" if close else ""


def _visible(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]
