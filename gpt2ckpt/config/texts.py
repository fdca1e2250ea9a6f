"""Overrides whose values are texts, kept as they were typed.

Hydra's grammar gives a meaning to `=`, commas, brackets and quotes, refuses most characters that
are not ASCII letters or digits, and reads `name=2024_11_28` as the number 20241128. For a key that
takes a text (a path, a prompt, a name) there is only one thing that `prompt=It's` or
`+resume=outputs/lr=0.1` can mean, so such a value is quoted before Hydra sees it.
"""

import re
from collections.abc import Iterator
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.overrides_visitor import HydraErrorListener
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import (  # type: ignore[attr-defined]
    CommonTokenStream,
    InputStream,
    OverrideLexer,
)
from hydra.grammar.gen.OverrideParser import OverrideParser

from gpt2ckpt.config.compose import explain_argument, in_shell, quoted
from gpt2ckpt.config.registry import ROOTS, expected_value, takes_text
from gpt2ckpt.config.user_files import GLOBAL_GROUPS
from gpt2ckpt.errors import ConfigError

HYDRA_KEYS = {
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.sweep.subdir",
    "hydra.job.name",
    "hydra.sweeper.study_name",
    "hydra.sweeper.storage",
}
PROMPTS = ("prompt", "trainer.sample_prompt")  # prose: neither `${…}` nor blanks at its ends go
WORD = re.compile(r"(?P<sign>\+{0,2})(?P<key>[\w./@-]+)=(?P<value>.*)", re.DOTALL)
NUMBERS = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL)


def as_meant(words: list[str], root: str, *, multirun: bool) -> list[str]:
    """The overrides `words` for Hydra, each text in them quoted where it has to be.

    Args:
        words: what was typed.
        root: the command: its keys are known by their types.
        multirun: whether commas separate the values of a sweep.

    Raises:
        ConfigError: a text that could mean two things, with both ways to write it.
    """
    meant, before = [], ""
    for word in words:
        if before and "=" not in word and not word.startswith("~"):
            joined = f"{before} {word}"
            raise ConfigError(
                f"{word!r} is not an override of the form key=value. If it belongs to {before!r}, "
                f"quote the whole for the shell: {in_shell(joined)}"
            )
        match = WORD.fullmatch(word)
        is_text = match is not None and _is_text(match["key"], root)
        before = word if is_text else ""
        if match is None:
            meant.append(word)
        elif is_text:
            meant.append(_text(word, match["sign"], match["key"], match["value"], multirun))
        elif match["key"] in GLOBAL_GROUPS:
            meant.append(word.lstrip("+"))  # Hydra's own spelling for a group without a choice
        elif _parsed(word) is None:
            raise ConfigError(explain_argument(word, root))
        else:
            meant.append(word)
    return with_texts(meant, root)


def _is_text(key: str, root: str) -> bool:
    """Whether the values of `key` are texts of any characters."""
    return key in HYDRA_KEYS or any(
        expected_value(key, one).startswith("a text") for one in _roots(root)
    )


def _roots(root: str) -> tuple[str, ...]:
    """The commands whose keys the command `root` takes."""
    return ("drill", "train") if root == "drill" else (root if root in ROOTS else "train",)


def _text(word: str, sign: str, key: str, value: str, multirun: bool) -> str:
    """`word`, or its value quoted, so that Hydra reads the text that was typed."""
    in_quotes = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    parsed = _parsed(word)
    if parsed is None:
        if in_quotes or (multirun and "," in value):
            raise ConfigError(_two_meanings(word, f"{sign}{key}", value, in_quotes))
        return _literal(sign, key, value)
    is_prose = key in PROMPTS and not in_quotes
    if parsed.is_sweep_override():
        is_list = parsed.value_type is ValueType.SIMPLE_CHOICE_SWEEP and not re.search(
            "['\"]", value
        )
        return _literal(sign, key, value) if (is_list or is_prose) and not multirun else word
    read = parsed.value()
    is_changed = is_prose and (read != value or "${" in value)  # blanks at its ends are cut, say
    return _literal(sign, key, value) if is_changed else word


def _parsed(word: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(word)
    except (HydraException, ValueError):
        return None


def _literal(sign: str, key: str, value: str) -> str:
    text = quoted(value, interpolates=key not in PROMPTS)
    return f"{sign}{key}={text}"


def _two_meanings(word: str, key: str, value: str, in_quotes: bool) -> str:
    if in_quotes:
        inner = in_shell(f"{key}={quoted(value[1:-1])}")
        whole = in_shell(f"{key}={quoted(value)}")
        return (
            f"{word} cannot be read: a quote stands inside its quotes. Write {inner}, or {whole} "
            "if the outer quotes belong to the text"
        )
    parts = ",".join(quoted(part.strip()) for part in value.split(","))
    return (
        f"{word} cannot be read: for a sweep write {in_shell(f'{key}={parts}')}, for one "
        f"text with commas {in_shell(f'{key}={quoted(value)}')}"
    )


def with_texts(words: list[str], root: str) -> list[str]:
    """The overrides `words` of the command `root`, with numbers that stand for texts quoted."""
    return [_with_texts(word, root) for word in words]


def _with_texts(word: str, root: str) -> str:
    key = word.lstrip("+").partition("=")[0]
    if "=" not in word or not _holds_text(key, root):
        return word
    try:
        tree = _parse(word)
    except HydraException:
        return word  # whoever composes it says what is wrong
    for number in sorted(_numbers(tree), key=lambda token: token.start, reverse=True):
        word = f"{word[: number.start]}{quoted(number.text)}{word[number.stop + 1 :]}"
    return word


def _holds_text(key: str, root: str) -> bool:
    return key in HYDRA_KEYS or any(takes_text(key, one) for one in _roots(root))


def _parse(word: str) -> Any:
    """The parse tree of an override. Raises HydraException."""
    listener, lexer = HydraErrorListener(), OverrideLexer(InputStream(word))
    lexer.removeErrorListeners()
    lexer.addErrorListener(listener)
    parser: Any = OverrideParser(CommonTokenStream(lexer))
    parser.removeErrorListeners()
    parser.addErrorListener(listener)
    return parser.override()


def _numbers(node: Any) -> Iterator[Any]:
    """The tokens below `node` that are whole values and would be read as numbers or booleans."""
    if isinstance(node, OverrideParser.PrimitiveContext):
        if node.start is node.stop and node.start.type in NUMBERS:
            yield node.start
        return
    if isinstance(node, OverrideParser.FunctionContext):
        return  # range(1,3) takes numbers, and choice() takes the quotes off again
    for child in getattr(node, "children", None) or ():
        yield from _numbers(child)
