"""Overrides whose values are texts, kept as they were typed.

Hydra's grammar reads `name=2024_11_28` as the number 20241128 and `prompt=1e3` as 1000.0, even
where the key takes a text. Such a value is quoted before Hydra sees it.
"""

from collections.abc import Iterator
from typing import Any

from hydra.core.override_parser.overrides_visitor import HydraErrorListener
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import (  # type: ignore[attr-defined]
    CommonTokenStream,
    InputStream,
    OverrideLexer,
)
from hydra.grammar.gen.OverrideParser import OverrideParser

from gpt2ckpt.config.compose import quoted
from gpt2ckpt.config.registry import ROOTS, takes_text

HYDRA_KEYS = {f"hydra.{key}" for key in ("run.dir", "sweep.dir", "sweep.subdir", "job.name")}
NUMBERS = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL)


def with_texts(words: list[str], root: str) -> list[str]:
    """The overrides `words` of the command `root`, with numbers that stand for texts quoted."""
    return [_with_texts(word, root if root in ROOTS else "train") for word in words]


def _with_texts(word: str, root: str) -> str:
    key = word.lstrip("+").partition("=")[0]
    if "=" not in word or not (key in HYDRA_KEYS or takes_text(key, root)):
        return word
    try:
        tree = _parse(word)
    except HydraException:
        return word  # whoever composes it says what is wrong
    for number in sorted(_numbers(tree), key=lambda token: token.start, reverse=True):
        word = f"{word[: number.start]}{quoted(number.text)}{word[number.stop + 1 :]}"
    return word


def _parse(word: str) -> Any:
    """The parse tree of an override. Raises HydraException."""
    listener, lexer = HydraErrorListener(), OverrideLexer(InputStream(word))
    lexer.removeErrorListeners()
    lexer.addErrorListener(listener)
    parser = OverrideParser(CommonTokenStream(lexer))
    parser.removeErrorListeners()
    parser.addErrorListener(listener)
    return parser.override()  # type: ignore[no-untyped-call]


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
