"""Quotes the values of string keys, so that Hydra reads them as they were typed.

Hydra's grammar gives a meaning to `=`, commas, brackets and quotes, refuses most characters beyond
ASCII letters and digits, and reads `name=2024_11_28` as the number 20241128. If a key takes a
string (a path, a prompt, a name), a value such as `prompt=It's` or `+resume=outputs/lr=0.1` has one
meaning only. Such a value is quoted before Hydra parses it.
"""

import re
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from hydra.core.override_parser.overrides_visitor import HydraErrorListener
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException

# Hydra 1.3 and 1.4 take these names from different antlr packages, neither of which has types.
from hydra.grammar.gen.OverrideLexer import (  # type: ignore[attr-defined]
    CommonTokenStream,
    InputStream,
    OverrideLexer,
)
from hydra.grammar.gen.OverrideParser import OverrideParser

from gpt2ckpt.config.compose import explain_argument, in_shell, parse_override, quoted
from gpt2ckpt.config.registry import ROOTS, expected_value, takes_string
from gpt2ckpt.config.user_files import GLOBAL_GROUPS
from gpt2ckpt.errors import ConfigError

HYDRA_KEYS = {
    "hydra.job.name",
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.sweep.subdir",
    "hydra.sweeper.storage",
    "hydra.sweeper.study_name",
}
PROMPTS = ("prompt", "trainer.sample_prompt")  # keep spaces at both ends, and `${…}`
OVERRIDE = re.compile(r"(?P<sign>\+{0,2})(?P<key>[\w./@-]+)=(?P<value>.*)", re.DOTALL)
NUMBERS = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL)


def quote_strings(arguments: list[str], root: str, *, multirun: bool) -> list[str]:
    """Return the overrides in `arguments` with the values of string keys quoted where needed.

    Args:
        arguments: the arguments as they were typed.
        root: the command, whose schema gives the type of each key.
        multirun: whether commas separate the values of a sweep.

    Raises:
        ConfigError: if a value has two meanings. The message shows how to write each.
    """
    result, before = [], ""
    for number, argument in enumerate(arguments):
        if before and _is_word(argument):
            words = [before, *takewhile(_is_word, arguments[number:])]
            raise ConfigError(
                f"{argument!r} is not an override of the form key=value. If it belongs to "
                f"{before!r}, quote both for the shell: {in_shell(' '.join(words))}"
            )
        match = OVERRIDE.fullmatch(argument)
        is_string = match is not None and _takes_one_string(match["key"], root)
        before = argument if is_string else ""
        if match is None:
            result.append(argument)
        elif is_string:
            result.append(_quote(argument, match, multirun=multirun))
        elif match["key"] in GLOBAL_GROUPS:
            result.append(argument.lstrip("+"))  # Hydra's own spelling for a group without a choice
        elif parse_override(argument) is None:
            raise ConfigError(explain_argument(argument, root))
        else:
            result.append(argument)
    return quote_numbers(result, root)


def _is_word(argument: str) -> bool:
    """Return whether an argument may be a part of the string before it."""
    return "=" not in argument and not argument.startswith("~")


def quote_numbers(overrides: list[str], root: str) -> list[str]:
    """Return `overrides` with numbers and booleans quoted where they are values of string keys."""
    return [_quote_numbers(override, root) for override in overrides]


def _takes_one_string(key: str, root: str) -> bool:
    """Return whether `key` takes one string, and not a list of strings."""
    return key in HYDRA_KEYS or any(
        expected_value(key, one).startswith("a string") for one in _roots(root)
    )


def _roots(root: str) -> tuple[str, ...]:
    """Return the commands whose keys the command `root` takes."""
    return ("drill", "train") if root == "drill" else (root if root in ROOTS else "train",)


def _quote(override: str, match: re.Match[str], *, multirun: bool) -> str:
    """Return `override` with its value quoted if Hydra would not read it as it was typed."""
    sign, key, value = match.groups()
    in_quotes = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    literal = f"{sign}{key}={quoted(value, interpolates=key not in PROMPTS)}"
    parsed = parse_override(override)
    if parsed is None:
        if in_quotes or (multirun and "," in value):
            raise ConfigError(
                _two_meanings(override, f"{sign}{key}", value=value, in_quotes=in_quotes)
            )
        return literal
    is_prompt = key in PROMPTS and not in_quotes
    if parsed.is_sweep_override():
        is_simple = parsed.value_type is ValueType.SIMPLE_CHOICE_SWEEP
        is_list = is_simple and not re.search("['\"]", value)
        return literal if (is_list or is_prompt) and not multirun else override
    # Hydra strips spaces at both ends, for example.
    is_changed = is_prompt and (parsed.value() != value or "${" in value)
    return literal if is_changed else override


def _two_meanings(override: str, key: str, *, value: str, in_quotes: bool) -> str:
    if in_quotes:
        inner = in_shell(f"{key}={quoted(value[1:-1])}")
        outer = in_shell(f"{key}={quoted(value)}")
        return (
            f"{override} cannot be read: it has a quote within quotes. Write {inner}, or "
            f"{outer} if the outer quotes belong to the string"
        )
    parts = ",".join(quoted(part.strip()) for part in value.split(","))
    return (
        f"{override} cannot be read: for a sweep write {in_shell(f'{key}={parts}')}, for one "
        f"string with commas {in_shell(f'{key}={quoted(value)}')}"
    )


def _quote_numbers(override: str, root: str) -> str:
    key = override.lstrip("+").partition("=")[0]
    is_string = key in HYDRA_KEYS or any(takes_string(key, one) for one in _roots(root))
    if "=" not in override or not is_string:
        return override
    try:
        tree = _parse_tree(override)
    except HydraException:
        return override  # composing refuses it
    for number in sorted(_numbers(tree), key=lambda token: token.start, reverse=True):
        override = f"{override[: number.start]}{quoted(number.text)}{override[number.stop + 1 :]}"
    return override


def _parse_tree(override: str) -> Any:
    """Return the parse tree of an override. Raises HydraException."""
    listener, lexer = HydraErrorListener(), OverrideLexer(InputStream(override))
    lexer.removeErrorListeners()
    lexer.addErrorListener(listener)
    parser: Any = OverrideParser(CommonTokenStream(lexer))
    parser.removeErrorListeners()
    parser.addErrorListener(listener)
    return parser.override()


def _numbers(node: Any) -> Iterator[Any]:
    """Yield the tokens below `node` that are complete values and numbers or booleans."""
    if isinstance(node, OverrideParser.PrimitiveContext):
        if node.start is node.stop and node.start.type in NUMBERS:
            yield node.start
        return
    if isinstance(node, OverrideParser.FunctionContext):
        return  # range(1,3) takes numbers, and choice() removes quotes
    for child in getattr(node, "children", None) or ():
        yield from _numbers(child)
