"""Finds the error in a user's config file if Hydra's message does not name the file.

Files are checked only after composing has failed, so a file that Hydra accepts is never refused.
"""

import codecs
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from gpt2ckpt.config.explain import no_such_option
from gpt2ckpt.errors import did_you_mean

GLOBAL_GROUPS = ("experiment", "debug")  # their files set keys of any group
PACKAGE = "# @package _global_"
Options = Mapping[str, list[str]]


def first_problem(
    folder: Path, name: str, chosen: Iterable[tuple[str, str]], options: Options
) -> str | None:
    """Return a message about the first wrong file in `folder`; None if there is none.

    Args:
        folder: the user's config folder.
        name: the primary config.
        chosen: pairs of a group and its chosen option.
        options: all options of each group.
    """
    places = [("", name), *((group.partition("@")[0], option) for group, option in chosen)]
    for group, option in places:
        file = folder / group / f"{option.removesuffix('.yaml')}.yaml"
        if file.is_file():
            problem = next(_problems(file, group, options), None)
            if problem is not None:
                return f"{file}{problem}"
    return None


def _problems(file: Path, group: str, options: Options) -> Iterator[str]:
    """Yield the errors in `file`, as text that follows the path of the file."""
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        yield f", line {line}: not UTF-8: save the file as UTF-8"
        return
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        yield _explain_yaml(error, text)
        return
    if not isinstance(values, dict | None):
        yield f": the file holds a {type(values).__name__}: write lines of the form key: value"
        return
    values = values or {}
    if group in GLOBAL_GROUPS:
        yield from _package_problems(content, text, group)
    yield from _entry_problems(values, group, options)
    yield from _choice_problems(values, group, options)


def _explain_yaml(error: yaml.YAMLError, text: str) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f": not YAML ({str(error).splitlines()[0]})"
    where = f", line {mark.line + 1}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"{where}: YAML allows no tab before a key: indent with spaces"
    problem = getattr(error, "problem", None) or "unreadable"
    return f"{where}: not YAML ({problem}): write key: value, indented with spaces"


def _package_problems(content: bytes, text: str, group: str) -> Iterator[str]:
    lines = ("".join(line.split()) for line in text.splitlines() if line.strip())
    header = itertools.takewhile(lambda line: line.startswith("#@"), lines)  # as Hydra reads it
    if "#@package_global_" not in header:
        yield f" cannot set keys outside of {group}: make `{PACKAGE}` its first line"
    elif content.startswith(codecs.BOM_UTF8):
        yield (
            f" begins with a byte-order mark, which hides its line `{PACKAGE}`: save it as UTF-8 "
            "without BOM"
        )


def _entry_problems(values: dict[str, Any], group: str, options: Options) -> Iterator[str]:
    """Yield the errors in the defaults list."""
    entries = values.get("defaults", [])
    if not isinstance(entries, list):
        yield ": defaults must be a list: write each entry on its own line, as in `  - _self_`"
        return
    builds_on = group in GLOBAL_GROUPS or any(
        isinstance(entry, str) and entry != "_self_" for entry in entries
    )
    for entry in entries:
        if isinstance(entry, str):
            named = entry.removeprefix("override ").strip(" /")
            if entry.startswith("override ") or (group in GLOBAL_GROUPS and " " in entry):
                yield f": {entry!r} in defaults has no option: write `- override /{named}: NAME`"
            continue
        if not isinstance(entry, dict) or len(entry) != 1:
            yield f": {entry!r} in defaults is not one group with its option: write `- group: NAME`"
            continue
        [(key, option)] = entry.items()
        yield from _group_problems(str(key), option, group, options, builds_on=builds_on)


def _group_problems(
    key: str, option: object, group: str, options: Options, *, builds_on: bool
) -> Iterator[str]:
    *keywords, path = key.split()
    path = path.partition("@")[0]
    named = path.lstrip("/")
    if named.startswith("hydra/"):
        return
    offered = options.get(named)
    if offered is None:
        yield (
            f": there is no group {named}, which its defaults list names; the groups are "
            f"{', '.join(options)}.{did_you_mean(named, options)}"
        )
        return
    right = f"override /{named}" if group else f"override {path}"
    if builds_on and ("override" not in keywords or (group and not path.startswith("/"))):
        yield f": write `- {right}: {option}` in its defaults list, not `- {key}: {option}`"
    for name in option if isinstance(option, list) else [option]:
        if isinstance(name, str) and "optional" not in keywords and name not in offered:
            where = ", which its defaults list names"
            yield f": {no_such_option(named, name, offered, where)}"


def _choice_problems(values: dict[str, Any], group: str, options: Options) -> Iterator[str]:
    """Yield an error for each group that is set like a key: groups belong in the defaults list."""
    for key, value in values.items():
        if key == group and isinstance(value, dict):
            yield (
                f" holds the keys of {group}: remove the line `{group}:` and the indentation, or "
                f"begin the file with {PACKAGE}"
            )
        if isinstance(value, str) and key in options:
            own = "override /" if group else "override "
            yield (
                f": {key}: {value} chooses an option of a group: write it in the defaults list, as "
                f"`defaults: [{own}{key}: {value}]`"
            )
